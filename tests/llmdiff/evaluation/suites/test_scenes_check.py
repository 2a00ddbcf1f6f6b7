"""The checker's decoding and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdiff.errors import ConfigError, CorruptWeightsError, OutputError
from llmdiff.evaluation.suites.scenes_check import GRID, CheckerOutput, SceneChecker
from llmdiff.evaluation.suites.verdicts import UNCLEAR


def test_decoding_finds_each_thing_once_and_names_only_what_is_clear() -> None:
    checker = SceneChecker(6)
    names = checker.class_names
    things = torch.zeros(1, 1 + len(names), GRID, GRID)
    things[:, 0] = 10.0
    things[0, 1 + names.index("car"), 7:9, 3] = torch.tensor([14.0, 13.0])  # two neighbouring cells, one car
    things[0, 1 + names.index("star"), 2, 12] = 15.0
    things[0, [1, 2, 3], 14, 14] = 14.0  # three classes alike: something, but what?
    colours = torch.zeros(1, 8, GRID, GRID)
    colours[0, 2] = 1.0
    sizes, background = torch.zeros(1, 4, GRID, GRID), torch.zeros(1, 8)
    sizes[0, 3], background[0, 4] = 1.0, 1.0
    output = CheckerOutput(things=things, colours=colours, sizes=sizes, background=background)
    (seen,) = checker.decode(output)
    assert seen.background == "green"
    assert {(t.name, t.colour, t.size, t.x_px, t.y_px) for t in seen.things} == {
        ("car", None, "other", 14.0, 30.0),
        ("star", "yellow", "other", 50.0, 10.0),
        (UNCLEAR, None, "other", 58.0, 58.0),
    }


def test_pictures_of_any_size_are_read() -> None:
    checker = SceneChecker(6)
    for side in (48, 64, 128):
        assert len(checker.read(np.zeros((3, side, side, 3), dtype=np.uint8), batch=2)) == 3


def test_saved_and_loaded_it_reads_the_same(tmp_path: Path) -> None:
    checker = SceneChecker(6)
    checker.figures = {"exact": 0.5}
    checker.save_pretrained(tmp_path / "checker")
    again = SceneChecker.from_pretrained(tmp_path / "checker")
    assert again.class_names == checker.class_names
    assert again.figures == {"exact": 0.5}
    for name, value in again.state_dict().items():
        assert torch.equal(value, checker.state_dict()[name].half().float())


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptWeightsError, match="not a readable scene checker"):
        SceneChecker.from_pretrained(tmp_path)
    SceneChecker(6).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptWeightsError):
        SceneChecker.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colours": ["mauve"]}))
    with pytest.raises(ConfigError, match="colours"):
        SceneChecker.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        SceneChecker(6).save_pretrained(tmp_path / "file" / "below")
