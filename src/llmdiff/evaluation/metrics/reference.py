"""Reference pictures of set metrics."""

from pathlib import Path

import numpy as np
from PIL import Image

from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.evaluation.metrics.kinds import Pictures


def read_reference(folder: Path, size_px: int = 256) -> Pictures:
    """Return the pictures of a folder, cropped to squares and resized. Shapes: (N, size, size, 3).

    Raises:
        ConfigError: it has fewer than two pictures, or one that cannot be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if len(paths) < 2:
        raise ConfigError(f"reference {folder}: has {len(paths)} pictures, expected at least two")
    pictures = []
    for path in paths:
        try:
            image = open_picture(path)
        except InputFileError as error:
            raise ConfigError(f"reference {path}: cannot be read as a picture ({error})") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        pictures.append(np.asarray(square.resize((size_px, size_px), Image.Resampling.BICUBIC)))
    return np.stack(pictures)
