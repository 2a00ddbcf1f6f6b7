"""The scenes suite: its prompts, its verdicts, and which world a checker reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmdiff.errors import ConfigError, CorruptWeightsError
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import (
    ScenePrompt,
    SceneScorer,
    load_checker,
    scene_prompts,
    scenes_suite,
    world_of_pipeline,
)
from llmdiff.evaluation.tables import report_tables
from llmdiff.world.checker import WorldChecker
from llmdiff.world.packaged import packaged_world, save_world
from llmdiff.world.reading import matches, reading_of
from llmdiff.world.rendering import SCENE_SIZE_PX, render
from llmdiff.world.scenes import World
from llmdiff.world.splits import SPLITS

from ..told_reader import Reader

WORLD = World(thing_count=96, styles=("flat", "line"))


def drawn(rows: Sequence[ScenePrompt]) -> Any:
    """A system that draws what its rows ask for."""
    scenes = {row.prompt: row.scene for row in rows}
    return lambda prompts, seeds: np.stack([render(scenes[prompt]) for prompt in prompts])


def test_prompts_of_every_split_are_the_same_every_time_and_a_longer_suite_begins_with_the_shorter() -> None:
    rows = scene_prompts(3, 1, WORLD)
    assert [row.split for row in rows] == [split for split in SPLITS for _ in range(3)]
    assert rows == scene_prompts(3, 1, WORLD)
    assert rows != scene_prompts(3, 2, WORLD)
    longer = scene_prompts(5, 1, WORLD)
    assert [row for row in longer if int(row.id.split("-")[-1]) < 3] == rows
    suite = scenes_suite(rows)
    assert set(suite.meanings) == set(SPLITS)
    assert len({row.id for row in rows}) == len({row.seeds(1, 0)[0] for row in suite.prompts}) == len(rows)
    assert suite.sha256 != scenes_suite(scene_prompts(3, 2, WORLD)).sha256
    assert suite.reference is not None
    assert suite.reference().shape == (len(rows), SCENE_SIZE_PX, SCENE_SIZE_PX, 3)


@pytest.mark.hostile("numbers and options")
def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="rhymes"):
        scene_prompts(1, 0, WORLD, splits=["rhymes"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="prompts_per_split"):
        scene_prompts(0, 0, WORLD)


def test_figures_agree_with_the_verdicts_on_what_was_read(tmp_path: Path) -> None:
    rows = scene_prompts(4, 0, WORLD, splits=["seen", "colours", "negation", "styles"])
    right = [reading_of(row.scene) for row in rows]
    wrong = right[1:] + right[:1]
    verdicts = [matches(row.expected, reading) for row, reading in zip(rows, wrong, strict=True)]
    systems = {"perfect": drawn(rows), "shifted": drawn(rows)}
    report = evaluate_suite(
        systems, scenes_suite(rows), tmp_path, metrics=[SceneScorer(Reader(WORLD, right + wrong))], batch=8
    )
    perfect, shifted = (report["systems"][name]["metrics"] for name in systems)
    assert all(
        figures["mean"] == 1
        for name, figures in perfect.items()
        if "swapped" not in name and "wrong" not in name
    )
    assert shifted["scenes"]["mean"] == np.mean([verdict.exact for verdict in verdicts]) < 0.5
    for part in ("things", "count", "colours", "style", "place", "absent"):
        asked = [verdict.parts[part] for verdict in verdicts if part in verdict.parts]
        assert shifted[f"scenes: {part}"]["mean"] == pytest.approx(np.mean(asked))
        assert shifted[f"scenes: {part}"]["n"] == len(asked)
    scored = (tmp_path / "scores" / "scenes" / "shifted.jsonl").read_text().splitlines()
    faults = [tuple(json.loads(line)["faults"]) for line in scored]
    assert faults == [verdict.faults for verdict in verdicts]
    assert "shifted" in report_tables(report)


def test_a_picture_that_cannot_be_drawn_has_no_part_right() -> None:
    for row in scene_prompts(2, 0, WORLD):
        failed = SceneScorer(Reader(WORLD, [])).failed(row)
        assert failed["score"] == 0
        # What must not be there is not, and nothing stands on its head.
        right = {name for name, value in failed["parts"].items() if value}
        assert right <= {"relation wrong", "absent", "way up"}


def test_a_part_that_only_undrawn_prompts_request_counts(tmp_path: Path) -> None:
    rows = scene_prompts(4, 0, WORLD, splits=["seen", "negation"])
    undrawn = {row.prompt for row in rows if row.expected.absent}
    assert 0 < len(undrawn) < len(rows)

    def fragile(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        if undrawn & set(prompts):
            raise RuntimeError("the lamp went out")
        return np.zeros((len(prompts), SCENE_SIZE_PX, SCENE_SIZE_PX, 3), dtype=np.uint8)

    checker = Reader(WORLD, [reading_of(row.scene) for row in rows if row.prompt not in undrawn])
    report = evaluate_suite(
        {"fragile": fragile}, scenes_suite(rows), tmp_path, metrics=[SceneScorer(checker)], batch=1
    )
    assert report["systems"]["fragile"]["metrics"]["scenes: absent"]["n"] == len(undrawn)


def test_the_prompts_are_those_of_the_packaged_world_by_default() -> None:
    assert scene_prompts(1, 3) == scene_prompts(1, 3, packaged_world())


def test_a_folder_without_a_checker_is_refused(tmp_path: Path) -> None:
    WorldChecker(WORLD, channels=8).save_pretrained(tmp_path / "checker")
    assert load_checker(tmp_path / "checker").world == WORLD
    with pytest.raises(CorruptWeightsError, match="not a readable"):
        load_checker(tmp_path)


def test_a_pipeline_that_names_its_world_is_asked_that_worlds_prompts(tmp_path: Path) -> None:
    checker = WorldChecker(WORLD, channels=8)
    assert world_of_pipeline(str(tmp_path), checker) == WORLD
    assert world_of_pipeline("someone/a-model-of-the-hub", checker) == WORLD
    small = World(thing_count=20, styles=("flat",))
    save_world(small, tmp_path)
    assert world_of_pipeline(str(tmp_path), checker) == small


@pytest.mark.hostile("weights")
def test_a_checker_that_cannot_read_all_that_a_pipeline_draws_is_refused(tmp_path: Path) -> None:
    save_world(WORLD, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read [0-9]+ of the 96 things"):
        world_of_pipeline(str(tmp_path), WorldChecker(World(thing_count=20), channels=8))
