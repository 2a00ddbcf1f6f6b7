"""What people prefer, as models have learnt it: PickScore and HPSv2, which are CLIP models trained further."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ImageTextModel


class PickScore:
    """exp(logit_scale) * cos(picture, prompt) of a CLIP model that was trained on people's choices.

    Units: about 15..25 with the published weights; only differences mean something.

    Source: Kirstain et al. 2023 (arXiv 2305.01569), section 3; weights: yuvalkirstain/PickScore_v1.
    """

    name, failed_score = "pickscore", 0.0

    def __init__(self, model: ImageTextModel) -> None:
        self.model, self.model_id = model, model.id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """The metric with the model of a folder or Hub id."""
        return cls(ImageTextModel.from_pretrained(name_or_path, device=device))

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """The score of every picture. Shapes: (N,)."""
        return {"pickscore": self.model.scale * self.model.cosines(pictures, prompts)}


class HPSv2(PickScore):
    """100 * cos(picture, prompt) of a CLIP model that was trained on people's choices.

    Units: about 20..30 with the published weights; only differences mean something.

    Source: Wu et al. 2023 (arXiv 2306.09341); its weights are open_clip's and have to be converted to a CLIP of
    transformers.
    """

    name = "hpsv2"

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """The score of every picture. Shapes: (N,)."""
        return {"hpsv2": 100 * self.model.cosines(pictures, prompts)}
