"""The scenes suite: deterministic, split by split."""

import pytest

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.scenes import scene_prompts, scenes_suite
from llmdiff.openmoji.contents import SPLITS, World, is_training_content

WORLD = World(objects=24)


def test_the_same_suite_every_time() -> None:
    suite = scene_prompts(5, 1, WORLD)
    assert suite == scene_prompts(5, 1, WORLD)
    assert suite != scene_prompts(5, 2, WORLD)
    assert [row.split for row in suite] == [split for split in SPLITS for _ in range(5)]
    assert all(row.prompt.strip() for row in suite)


def test_a_longer_suite_begins_with_the_shorter_one() -> None:
    short, long = scene_prompts(2, 0, WORLD), scene_prompts(6, 0, WORLD)
    for split in SPLITS:
        rows = [row for row in long if row.split == split]
        assert [row for row in short if row.split == split] == rows[:2]
    assert len({row.seed for row in long}) == len(long)


def test_held_out_splits_hold_what_training_never_shows() -> None:
    for row in scene_prompts(20, 0, WORLD):
        assert is_training_content(row.content) == (row.split not in ("pairs", "colours"))


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="prompts_per_split"):
        scene_prompts(0)
    with pytest.raises(ConfigError, match="rhymes"):
        scene_prompts(1, splits=["rhymes"])  # type: ignore[list-item]


def test_it_is_a_suite_like_the_others() -> None:
    rows = scene_prompts(3, 1, WORLD)
    suite = scenes_suite(rows)
    assert suite.prompts == tuple(rows)
    assert [row.seeds(1, 7) for row in suite.prompts] == [[row.seed] for row in rows]
    assert len({*rows[0].seeds(3, 0), *rows[1].seeds(3, 0)}) == 6
    assert len({row.id for row in rows}) == len(rows)
    assert set(suite.meanings) == set(SPLITS)
    assert suite.sha256 != scenes_suite(scene_prompts(3, 2, WORLD)).sha256
    assert suite.reference is not None
    assert suite.reference().shape == (len(rows), 64, 64, 3)
