"""Pictures made worse on purpose, and the order that a metric has to find in them."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from llmdiff.evaluation.metrics.kinds import Pictures


def blurred(pictures: Pictures, radius: float) -> Pictures:
    images = [Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)) for picture in pictures]
    return np.stack([np.asarray(image) for image in images])


def noised(pictures: Pictures, strength: float) -> Pictures:
    noise = np.random.default_rng(5).normal(0, strength, pictures.shape)
    return (pictures + noise).clip(0, 255).round().astype(np.uint8)


def check_gets_worse(
    badness: Callable[[Pictures], float],
    pictures: Pictures,
    *,
    noise: tuple[float, float],
    blur: tuple[float, float],
) -> None:
    """Fails unless more noise and more blur are worse than less, and less than none."""
    clean = badness(pictures)
    assert clean < badness(noised(pictures, noise[0])) < badness(noised(pictures, noise[1]))
    assert clean < badness(blurred(pictures, blur[0])) < badness(blurred(pictures, blur[1]))
