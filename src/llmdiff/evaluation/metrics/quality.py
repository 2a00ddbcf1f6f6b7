"""Picture quality independent of the prompt: CLIP-IQA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.metrics.models import ImageTextModel

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


class CLIPIQA:
    """How much closer a picture is to "Good photo." than to "Bad photo.", and the same for other prompt pairs.

        s = exp(t_1) / (exp(t_1) + exp(t_2)),    t_i = exp(logit_scale) * cos(picture, prompt i)

    `clip_iqa` is the pair `quality`; every other pair is named `clip_iqa_PAIR`. The metric was designed for
    photographs.

    Units: 0..1.

    Source: Wang, Chan and Loy 2023 (arXiv 2207.12396), equations 1 and 2 and the pairs of its tables. Deviation: the
    image encoder keeps its position embedding, so pictures are resized as its processor says.
    """

    name, failed_score = "clip-iqa", 0.0

    def __init__(self, model: ImageTextModel, pairs: Sequence[str] = tuple(PROMPT_PAIRS)) -> None:
        unknown = [pair for pair in pairs if pair not in PROMPT_PAIRS]
        if unknown or not pairs:
            raise MetricError(
                f"pairs: got {unknown[0] if unknown else 'none'!r}, expected some of {', '.join(PROMPT_PAIRS)}"
            )
        self.model, self.model_id, self.pairs = model, model.id, tuple(pairs)
        texts = model.embed_texts([text for pair in self.pairs for text in PROMPT_PAIRS[pair]])
        self._texts = texts.double().numpy()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the metric, all pairs, with the CLIP model of a folder or Hub id."""
        return cls(ImageTextModel.from_pretrained(name_or_path, device=device))

    def score(self, pictures: Pictures, prompts: Sequence[str] = ()) -> dict[str, NDArray[np.float64]]:
        """Return the figures of every picture; prompts are ignored. Shapes: (N,) each."""
        cosines = self.model.embed_pictures(pictures).double().numpy() @ self._texts.T
        good, bad = cosines[:, 0::2], cosines[:, 1::2]
        # A softmax of two is a sigmoid of their difference, here in the form that cannot overflow.
        shares = (1 + np.tanh(self.model.scale * (good - bad) / 2)) / 2
        names = ["clip_iqa" if pair == "quality" else f"clip_iqa_{pair}" for pair in self.pairs]
        return {name: shares[:, i] for i, name in enumerate(names)}
