"""Choose the size to draw for a requested size."""

import math
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

from llmdiff.drawing.draw import DrawingSettings
from llmdiff.errors import ConfigError

SizePolicy = Literal["strict", "nearest"]
# The largest aspect ratio, as for OpenAI's models; wider or higher pictures are drawn as 3:1.
_MAX_ASPECT = 3.0

Settings = TypeVar("Settings", bound=DrawingSettings)


class Sized(Protocol):
    """An object with supported picture sizes.

    Fields:
        size_px: the default (height, width).
        multiple_px: the number that height and width must be multiples of.
    """

    size_px: tuple[int, int]
    multiple_px: int


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return (height, width) of a size like "64x48" (width first); None for None and "auto"."""
    if size is None or size == "auto":
        return None
    width, height = (int(side) for side in size.split("x"))
    return height, width


def nearest_size(asked_px: tuple[int, int], drawer: Sized) -> tuple[int, int]:
    """Return the (height, width) of the requested aspect ratio with about the drawer's own number of pixels."""
    if asked_px == drawer.size_px:
        return asked_px
    aspect = min(max(asked_px[1] / asked_px[0], 1 / _MAX_ASPECT), _MAX_ASPECT)
    side = math.sqrt(drawer.size_px[0] * drawer.size_px[1])
    step = drawer.multiple_px
    height, width = (
        max(step, round(length / step) * step)
        for length in (side / math.sqrt(aspect), side * math.sqrt(aspect))
    )
    return height, width


def with_size(settings: Settings, drawer: Sized, max_pixels: int | None) -> Settings:
    """Return the settings with their size filled in.

    Raises:
        ConfigError: the picture would have more than `max_pixels` (None: four times the pipeline's own).
    """
    own_px = drawer.size_px
    height_px, width_px = settings.height_px or own_px[0], settings.width_px or own_px[1]
    limit = max_pixels or 4 * own_px[0] * own_px[1]
    if height_px * width_px > limit:
        raise ConfigError(
            f"size is {width_px}x{height_px}, expected at most {limit} pixels in all: choose a smaller one, such as "
            f'the pipeline\'s own {own_px[1]}x{own_px[0]} ("auto"), or serve with --size-policy nearest'
        )
    return replace(settings, height_px=height_px, width_px=width_px)
