"""An evaluation's pictures, kept one by one, as `create_study` reads them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmdiff.drawing.pictures import save_png
from llmdiff.errors import OutputError
from llmdiff.evaluation.suites import ScenePrompt

Keep = Callable[[Sequence[ScenePrompt], NDArray[np.uint8]], None]
"""Is given the rows of a suite and a picture of each (N, H, W, 3), in the order of the suite."""


def keep_in(folder: Path, facts: Mapping[str, object]) -> Keep:
    """Return what writes every picture to the folder as NUMBER.png, with its prompt, seed and `facts` inside.

    Pictures of an earlier evaluation in the folder are removed: a study would take them for this one's.

    Raises:
        OutputError: the folder cannot be written (now, or by a call).
    """
    try:
        for old in folder.glob("*.png"):
            old.unlink()
    except OSError as error:
        raise OutputError(
            f"out {folder} cannot be emptied ({error.strerror or error}): choose another folder"
        ) from error
    written = 0

    def keep(rows: Sequence[ScenePrompt], images: NDArray[np.uint8]) -> None:
        nonlocal written
        for row, image in zip(rows, images, strict=True):
            made_with = {"prompt": row.prompt, "seed": row.seed, "split": row.split, **facts}
            save_png(Image.fromarray(image), folder / f"{written:05d}.png", made_with)
            written += 1

    return keep
