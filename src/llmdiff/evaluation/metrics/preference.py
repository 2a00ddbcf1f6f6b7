"""Models of human preference: PickScore and HPSv2, which are fine-tuned CLIP models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ImageTextModel, ModelMetric


class PickScore(ModelMetric):
    """exp(logit_scale) * cos(picture, prompt) of a CLIP model that was fine-tuned on human choices.

    Units: about 15..25 with the published weights; only differences are meaningful.

    Source: Kirstain et al. 2023 (arXiv 2305.01569), section 3; weights: yuvalkirstain/PickScore_v1.
    """

    name, failed_score, model_kind = "pickscore", 0.0, ImageTextModel

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every picture. Shapes: (N,)."""
        return {"pickscore": self.model.scale * self.model.cosines(pictures, prompts)}


class HPSv2(ModelMetric):
    """100 * cos(picture, prompt) of a CLIP model that was fine-tuned on human choices.

    Pictures keep their shape: the longer side is resized to the model's, the rest is black.

    Units: about 20..30 with the published weights; only differences are meaningful.

    Source: Wu et al. 2023 (arXiv 2306.09341) and the preprocessing of its package; its weights are open_clip's and
    have to be converted to a CLIP of transformers.
    """

    name, failed_score, model_kind = "hpsv2", 0.0, ImageTextModel

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the score of every picture. Shapes: (N,)."""
        side_px = self.model.model.config.vision_config.image_size
        return {"hpsv2": 100 * self.model.cosines(_padded(pictures, side_px), prompts)}


def _padded(pictures: Pictures, side_px: int) -> Pictures:
    height, width = (round(edge * side_px / max(pictures.shape[1:3])) for edge in pictures.shape[1:3])
    top, left = (side_px - height) // 2, (side_px - width) // 2
    padded = np.zeros((len(pictures), side_px, side_px, 3), dtype=np.uint8)
    for picture, place in zip(pictures, padded, strict=True):
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        place[top : top + height, left : left + width] = np.asarray(resized)
    return padded
