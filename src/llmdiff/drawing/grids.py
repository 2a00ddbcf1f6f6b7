"""Labelled grids of small pictures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from llmdiff.files import whole_file


def save_grid(
    images: NDArray[np.uint8], labels: Sequence[str], path: Path, *, columns: int, tile_px: int = 160
) -> None:
    """Write a grid of pictures, each with its label below.

    Shapes: images (N, H, W, 3) uint8.
    """
    font, label_px = ImageFont.load_default(11), 44
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (tile_px + 8) + 8, rows * (tile_px + label_px + 8) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = 8 + index % columns * (tile_px + 8)
        y = 8 + index // columns * (tile_px + label_px + 8)
        sheet.paste(Image.fromarray(image).resize((tile_px, tile_px), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(label, 28)[:3]
        pen.text((x, y + tile_px + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG")
