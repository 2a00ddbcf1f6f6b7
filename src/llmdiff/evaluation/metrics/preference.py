"""Models of human preference: PickScore and HPSv2, which are fine-tuned CLIP models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.metrics.alignment import CosineScore
from llmdiff.evaluation.metrics.kinds import Pictures


class PickScore(CosineScore):
    """exp(logit_scale) * cos(picture, prompt) of a CLIP model that was fine-tuned on human choices.

    Units: about 15..25 with the published weights; only differences are meaningful.

    Source: Kirstain et al. 2023 (arXiv 2305.01569), section 3; weights: yuvalkirstain/PickScore_v1.
    """

    name, failed_score = "pickscore", 0.0

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every picture. Shapes: (N,)."""
        return {"pickscore": self.model.scale * self.model.cosines(pictures, prompts)}


class HPSv2(CosineScore):
    """100 * cos(picture, prompt) of a CLIP model that was fine-tuned on human choices.

    Units: about 20..30 with the published weights; only differences are meaningful.

    Source: Wu et al. 2023 (arXiv 2306.09341); its weights are open_clip's and have to be converted to a CLIP of
    transformers.
    """

    name, failed_score = "hpsv2", 0.0

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every picture. Shapes: (N,)."""
        return {"hpsv2": 100 * self.model.cosines(pictures, prompts)}
