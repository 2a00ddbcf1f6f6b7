"""Prompt alignment by an image-text model: SigLIP score and CLIPScore."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ImageTextModel, ModelMetric


class SigLIPScore(ModelMetric):
    """The cosine of picture and prompt in a SigLIP or SigLIP 2 model, and the probability that they match.

        siglip = cos(x, y)        siglip_probability = sigmoid(exp(t) * cos(x, y) + b)

    Units: -1..1 and 0..1.

    Source: Zhai et al. 2023 (arXiv 2303.15343), the loss of a positive pair; Tschannen et al. 2025 (SigLIP 2, arXiv
    2502.14786). The loss trains the probability; the cosine still differs where the probability saturates.
    """

    name, failed_score, model_kind = "siglip", 0.0, ImageTextModel

    def __init__(self, model: ImageTextModel) -> None:
        if model.bias is None:
            raise MetricError(
                f"metric siglip: model {model.id!r} has no logit bias, expected a SigLIP or SigLIP 2 model; for a "
                "CLIP model use the metric clip-score"
            )
        super().__init__(model)
        self._bias = model.bias

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return both figures of every picture. Shapes: (N,) each."""
        cosine = self.model.cosines(pictures, prompts)
        logits = self.model.scale * cosine + self._bias
        # This form does not overflow for large or small logits.
        return {"siglip": cosine, "siglip_probability": (1 + np.tanh(logits / 2)) / 2}


class CLIPScore(ModelMetric):
    """100 * max(cos, 0) of picture and prompt in a CLIP model.

    Units: 0..100.

    Source: Hessel et al. 2021 (arXiv 2104.08718), equation 1, with the factor 100 that text-to-image papers use in
    place of its 2.5, and without its prefix "A photo depicts".
    """

    name, failed_score, model_kind = "clip-score", 0.0, ImageTextModel

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every picture. Shapes: (N,)."""
        return {"clip_score": 100 * np.maximum(self.model.cosines(pictures, prompts), 0)}
