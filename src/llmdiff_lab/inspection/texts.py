"""Texts to inspect models with: a user's own, or captions of emoji scenes."""

from pathlib import Path

import numpy as np

from llmdiff.errors import PromptError
from llmdiff.files import prompt_lines
from llmdiff.openmoji.captions import caption
from llmdiff.openmoji.contents import World


def read_texts(path: Path | None, number: int, *, seed: int = 0) -> list[str]:
    """Return the first `number` texts of a file with one per line, or as many captions if `path` is None.

    Raises:
        InputFileError: the file cannot be read, or is not UTF-8.
        PromptError: the file has fewer texts.
    """
    if path is None:
        world, rng = World(), np.random.default_rng([seed, 12])
        return [caption(world.training_content(rng), world, rng) for _ in range(number)]
    lines = prompt_lines(path)
    if len(lines) < number:
        raise PromptError(f"texts {path} has {len(lines)} texts, expected at least {number}: lower --number")
    return lines[:number]
