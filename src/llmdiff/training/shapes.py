"""Shapes of training pictures: resize and crop."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Limits on training pictures, and the buckets that they are cropped to.

    Units: pixels. `resolution_px` squared is the area of every bucket, sides are multiples of `multiple_px`.
    """

    resolution_px: int
    multiple_px: int = 64
    aspect_buckets: bool = True
    max_aspect: float = 2.0
    min_side_px: int = 32
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False

    def buckets(self) -> list[tuple[int, int]]:
        """Return the (height, width) of every bucket, from portrait to landscape."""
        step = self.multiple_px
        square = max(step, self.resolution_px // step * step)
        if not self.aspect_buckets:
            return [(square, square)]
        found = {(square, square)}
        for long in range(square, int(square * self.max_aspect**0.5) + step, step):
            short = max(step, round(square * square / long / step) * step)
            if long / short <= self.max_aspect:
                found |= {(long, short), (short, long)}
        return sorted(found, key=lambda size: size[1] / size[0])


def cut(
    picture: Image.Image, height: int, width: int, crop: str, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize and crop a picture to height x width; return it and its corner (top, left) in the resized picture."""
    resized = picture.resize(
        resized_size(picture.width, picture.height, height, width), Image.Resampling.LANCZOS
    )
    spare = resized.height - height, resized.width - width
    if crop == "random":
        top, left = (int(rng.integers(room + 1)) for room in spare)
    else:
        top, left = (room // 2 for room in spare)
    return resized.crop((left, top, left + width, top + height)), (top, left)


def resized_size(width: int, height: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Return the smallest (width, height) with the picture's aspect that covers the target."""
    scale = max(target_height / height, target_width / width)
    return max(target_width, round(width * scale)), max(target_height, round(height * scale))
