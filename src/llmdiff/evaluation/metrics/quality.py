"""Picture quality independent of the prompt: CLIP-IQA."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ImageTextModel, ModelMetric

PROMPT_PAIRS: dict[str, tuple[str, str]] = {
    "quality": ("Good photo.", "Bad photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "colorfulness": ("Colorful photo.", "Dull photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "complexity": ("Complex photo.", "Simple photo."),
    "natural": ("Natural photo.", "Synthetic photo."),
    "happy": ("Happy photo.", "Sad photo."),
    "scary": ("Scary photo.", "Peaceful photo."),
    "new": ("New photo.", "Old photo."),
    "warm": ("Warm photo.", "Cold photo."),
    "real": ("Real photo.", "Abstract photo."),
    "beautiful": ("Beautiful photo.", "Ugly photo."),
    "lonely": ("Lonely photo.", "Sociable photo."),
    "relaxing": ("Relaxing photo.", "Stressful photo."),
}


class CLIPIQA(ModelMetric):
    """How much closer a picture is to "Good photo." than to "Bad photo.", and the same for other prompt pairs.

        s = exp(t_1) / (exp(t_1) + exp(t_2)),    t_i = exp(logit_scale) * cos(picture, prompt i)

    `clip_iqa` is the pair `quality`; every other pair is named `clip_iqa_PAIR`. The metric was designed for
    photographs.

    Units: 0..1.

    Source: Wang, Chan and Loy 2023 (arXiv 2207.12396), equations 1 and 2 and the pairs of its tables. Deviation: the
    image encoder keeps its position embedding, so pictures are resized as its processor says.
    """

    name, failed_score, model_kind = "clip-iqa", 0.0, ImageTextModel

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__(model)
        texts = model.embed_texts([text for pair in PROMPT_PAIRS.values() for text in pair])
        self._texts = texts.double().numpy()

    def score(self, pictures: Pictures, prompts: Sequence[str] = ()) -> dict[str, NDArray[np.float64]]:
        """Return the figures of every picture; prompts are ignored. Shapes: (N,) each."""
        cosines = self.model.embed_pictures(pictures).double().numpy() @ self._texts.T
        good, bad = cosines[:, 0::2], cosines[:, 1::2]
        # The softmax of two values is the sigmoid of their difference; this form does not overflow.
        shares = (1 + np.tanh(self.model.scale * (good - bad) / 2)) / 2
        names = ["clip_iqa" if pair == "quality" else f"clip_iqa_{pair}" for pair in PROMPT_PAIRS]
        return {name: shares[:, i] for i, name in enumerate(names)}
