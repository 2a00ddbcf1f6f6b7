"""The world of a pipeline's folder, and that of the packaged weights."""

import pytest

from llmdiff.errors import LLMDiffError
from llmdiff.world import packaged
from llmdiff.world.packaged import WEIGHTS, packaged_world, save_world, world_of
from llmdiff.world.scenes import World


@pytest.mark.parametrize("world", [World(thing_count=96, styles=("flat", "line")), World()])
def test_the_folder_of_a_pipeline_names_its_world(tmp_path, world):
    assert world_of(tmp_path) is None
    save_world(world, tmp_path)
    assert world_of(tmp_path) == world


def test_the_packaged_world_is_that_of_the_packaged_pipeline(tmp_path, monkeypatch):
    assert packaged_world() == world_of(WEIGHTS / "pipeline")
    monkeypatch.setattr(packaged, "WEIGHTS", tmp_path)
    with pytest.raises(LLMDiffError, match="llmdiff-lab build"):
        packaged_world()
