"""Reference pictures of set metrics, and features of sets of pictures."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import ConfigError, InputFileError
from llmdiff.evaluation.metrics.kinds import SetMetric

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class ReferenceFolder:
    """The pictures of a folder at their own sizes. Every iteration reads them again, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for path in self.paths:
            try:
                yield np.asarray(open_picture(path))
            except InputFileError as error:
                raise ConfigError(f"reference {path}: cannot be read as a picture ({error})") from error


def read_reference(folder: Path) -> ReferenceFolder:
    """Return the pictures of a folder, after checking that each can be read.

    Raises:
        ConfigError: it has fewer than two pictures, or one that cannot be read.
    """
    found = ReferenceFolder(folder)
    if len(found) < 2:
        raise ConfigError(f"reference {folder}: has {len(found)} pictures, expected at least two")
    for _ in found:
        pass
    return found


def set_features(
    metric: SetMetric, pictures: Iterable[NDArray[np.uint8]], *, batch: int = 16
) -> NDArray[np.float32]:
    """Return the features of pictures of any sizes.

    The model sees the central square of every picture, resized by its own image processor. Reference and drawn
    pictures are processed in the same way, since a different resizing would count as a distance.

    Shapes: pictures (H, W, 3); (N, D).
    """
    numbered = enumerate(map(_central_square, pictures))
    alike = groupby(numbered, key=lambda pair: (pair[0] // batch, len(pair[1])))
    return np.concatenate([metric.features(np.stack([picture for _, picture in some])) for _, some in alike])


def _central_square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]
