"""The packaged weights, and the worlds that pipelines were trained on."""

import json
from importlib.resources import files
from pathlib import Path

from llmdiff.errors import LLMDiffError
from llmdiff.world.scenes import World

WEIGHTS = Path(str(files("llmdiff.world"))) / "weights"
"""Folder of the embedded default: pipeline, adapter, checker, siglip."""
_WORLD_FILE = "world.json"
NO_WEIGHTS = (
    "this is a source tree without the trained weights; install the released package, or train them with "
    "`llmdiff-lab build`"
)


def save_world(world: World, pipeline_folder: Path) -> None:
    """Write the world that a pipeline was trained on into its folder."""
    saved = {"thing_count": world.thing_count, "styles": list(world.styles)}
    (pipeline_folder / _WORLD_FILE).write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def world_of(pipeline_folder: str | Path) -> World | None:
    """Return the world that a pipeline was trained on; None if its folder does not name one."""
    path = Path(pipeline_folder) / _WORLD_FILE
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    return World(thing_count=saved["thing_count"], styles=tuple(saved["styles"]))


def packaged_world() -> World:
    """Return the world of the packaged weights.

    Raises:
        LLMDiffError: the package has no weights.
    """
    world = world_of(WEIGHTS / "pipeline")
    if world is None:
        raise LLMDiffError(f"{WEIGHTS} has no weights: {NO_WEIGHTS}")
    return world
