"""The scenes suite: deterministic, split by split."""

import pytest

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites import scenes_suite
from llmdiff.openmoji.contents import SPLITS, World, is_training_content

WORLD = World(objects=24)


def test_the_same_suite_every_time() -> None:
    suite = scenes_suite(5, 1, WORLD)
    assert suite == scenes_suite(5, 1, WORLD)
    assert suite != scenes_suite(5, 2, WORLD)
    assert [row.split for row in suite] == [split for split in SPLITS for _ in range(5)]
    assert all(row.prompt.strip() for row in suite)


def test_a_longer_suite_begins_with_the_shorter_one() -> None:
    short, long = scenes_suite(2, 0, WORLD), scenes_suite(6, 0, WORLD)
    for split in SPLITS:
        rows = [row for row in long if row.split == split]
        assert [row for row in short if row.split == split] == rows[:2]
    assert len({row.seed for row in long}) == len(long)


def test_held_out_splits_hold_what_training_never_shows() -> None:
    for row in scenes_suite(20, 0, WORLD):
        assert is_training_content(row.content) == (row.split not in ("pairs", "colours"))


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="prompts_per_split"):
        scenes_suite(0)
    with pytest.raises(ConfigError, match="rhymes"):
        scenes_suite(1, splits=["rhymes"])  # type: ignore[list-item]
