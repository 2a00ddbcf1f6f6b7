"""Name, enlarge and write drawn pictures."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from llmdiff.checks import bounds
from llmdiff.drawing.pictures import save_png

Filter = Literal["lanczos", "nearest"]
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_LONGEST_NAME = 48


@dataclass(frozen=True)
class SaveSize:
    """The minimum size of a saved picture: smaller ones are enlarged to `side_px` on the shorter side.

    Raises:
        ConfigError: `side_px` is out of range.
    """

    side_px: int
    filter: Filter = "lanczos"

    def __post_init__(self) -> None:
        bounds.SIDE_PX.check("save_size", self.side_px)


def picture_name(prompt: str, seed: int, suffix: str = "") -> Path:
    """Return a file name in the current folder from a prompt's words and the seed, such as a-red-heart-3.png."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:_LONGEST_NAME].strip("-_")
    return Path("-".join(filter(None, [words or "picture", str(seed), suffix])) + ".png")


def enlarged(image: Image.Image, size: SaveSize | None) -> Image.Image:
    """Return the picture enlarged to `size`; unchanged if it is large enough or `size` is None."""
    shorter = min(image.size)
    if size is None or size.side_px <= shorter:
        return image
    width, height = (round(side * size.side_px / shorter) for side in image.size)
    return image.resize((width, height), _FILTERS[size.filter])


def size_metadata(image: Image.Image, size: SaveSize | None) -> dict[str, object]:
    """Return the metadata about `enlarged`; empty without a size."""
    if size is None:
        return {}
    width, height = image.size
    return {"save_size": size.side_px, "save_filter": size.filter, "drawn_size": f"{width} x {height}"}


def save_drawn(image: Image.Image, path: Path, size: SaveSize | None, metadata: Mapping[str, object]) -> None:
    """Write a drawn picture, enlarged if there is a size, with its metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    save_png(enlarged(image, size), path, {**metadata, **size_metadata(image, size)})
