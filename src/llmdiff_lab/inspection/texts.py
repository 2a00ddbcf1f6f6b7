"""Texts to inspect models with: a user's own, or captions of the embedded default's scenes."""

from pathlib import Path

from llmdiff.errors import PromptError
from llmdiff.files import prompt_lines
from llmdiff.world.packaged import packaged_world
from llmdiff.world.splits import sample_scene, training_caption

_SEED = 12  # not that of the shipped models' training


def read_texts(path: Path | None, number: int) -> list[str]:
    """Return the first `number` texts of a file with one per line, or as many plain captions if `path` is None.

    Raises:
        InputFileError: the file cannot be read, or is not UTF-8.
        PromptError: the file has fewer texts.
    """
    if path is None:
        world = packaged_world()
        scenes = (sample_scene(_SEED, index, world) for index in range(number))
        return [training_caption(scene, _SEED, index, "plain").text for index, scene in enumerate(scenes)]
    lines = prompt_lines(path)
    if len(lines) < number:
        raise PromptError(f"texts {path} has {len(lines)} texts, expected at least {number}: lower --number")
    return lines[:number]
