"""How a drawn picture becomes a file: its name if none is given, and its size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from llmdiff.drawing.pictures import save_png

if TYPE_CHECKING:
    from llmdiff.drawing.draw import DrawingSettings

Filter = Literal["lanczos", "nearest"]
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_LONGEST_NAME = 48


def picture_name(prompt: str, seed: int, suffix: str = "") -> Path:
    """Return a file name in the current folder made of a prompt's words and the seed, as a-red-heart-3.png."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:_LONGEST_NAME].strip("-_")
    return Path("-".join(filter(None, [words or "picture", str(seed), suffix])) + ".png")


def enlarged(image: Image.Image, settings: "DrawingSettings") -> Image.Image:
    """Return the picture with `settings.save_size_px` as its shorter side; unchanged if it is that large already."""
    shorter = min(image.size)
    if settings.save_size_px is None or settings.save_size_px <= shorter:
        return image
    width, height = (round(side * settings.save_size_px / shorter) for side in image.size)
    return image.resize((width, height), _FILTERS[settings.save_filter])


def size_metadata(image: Image.Image, settings: "DrawingSettings") -> dict[str, object]:
    """Return what a picture's metadata say about `enlarged`; nothing if no size was asked for."""
    if settings.save_size_px is None:
        return {}
    width, height = image.size
    return {
        "save_size": settings.save_size_px,
        "save_filter": settings.save_filter,
        "drawn_size": f"{width} x {height}",
    }


def save_drawn(
    image: Image.Image, path: Path, settings: "DrawingSettings", metadata: Mapping[str, object]
) -> None:
    """Write a drawn picture, enlarged if the settings ask for it, with its metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    save_png(enlarged(image, settings), path, {**metadata, **size_metadata(image, settings)})
