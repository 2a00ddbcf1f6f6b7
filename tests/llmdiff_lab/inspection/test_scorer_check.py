"""The check of the scorer, on readers whose worth is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import cohens_kappa
from llmdiff.world.reading import Reading, reading_of
from llmdiff.world.rendering import render
from llmdiff.world.scenes import World
from llmdiff_lab.inspection.scorer_check import check_scorer, scorer_tables
from llmdiff_lab.world_build.checker_figures import held_out_scenes

WORLD = World(thing_count=40, styles=("flat", "line"))
RENDERS = 110


def truths() -> list[Reading]:
    return [reading_of(scene) for _, scene in held_out_scenes(WORLD, RENDERS, seed=0)]


def test_a_reader_without_fault_agrees_and_shuffled_captions_are_chance() -> None:
    known = truths()
    report = check_scorer(lambda images: known, WORLD, renders=RENDERS)
    for found in report["pictures"].values():
        rows = found["captions"]
        assert rows["own"]["score"]["mean"] == rows["own"]["truth"]["mean"] == 1
        assert rows["near miss"]["score"]["mean"] < 0.3
        assert rows["shuffled"]["score"]["mean"] < 0.05
        assert all(row["agreement"]["mean"] == 1 for row in rows.values())
        assert rows["all"]["kappa"] == 1
        assert rows["own"]["kappa"] is None
        assert set(found["parts"].values()) == {1.0}


def test_faults_of_a_reader_show_where_they_are() -> None:
    known = truths()
    half_blind = [
        replace(one, things=one.things[:-1]) if index % 2 == 0 else one for index, one in enumerate(known)
    ]
    report = check_scorer(lambda images: half_blind, WORLD, renders=RENDERS)
    rows = report["pictures"]["clean"]["captions"]
    assert rows["own"]["score"]["mean"] == 0.5
    assert rows["own"]["false_wrong"] == 0.5
    assert rows["own"]["agreement"]["mean"] == 0.5
    assert report["pictures"]["clean"]["parts"]["count"] < 1
    assert report["pictures"]["clean"]["parts"]["background"] == 1
    assert "clean, own" in scorer_tables(report)
    assert scorer_tables(report, markdown=True).startswith("| %")


def test_pictures_are_those_of_the_scenes_and_spoilt_ones_differ_a_little() -> None:
    given: list[NDArray[np.uint8]] = []

    def read(images: NDArray[np.uint8]) -> Sequence[Reading]:
        given.append(images)
        return truths()

    check_scorer(read, WORLD, renders=RENDERS)
    images = np.stack([render(scene) for _, scene in held_out_scenes(WORLD, RENDERS, seed=0)])
    clean, spoilt = given
    assert (clean == images).all()
    assert 0 < np.abs(clean.astype(int) - spoilt).mean() < 30
    with pytest.raises(ConfigError, match="renders: got 1"):
        check_scorer(read, WORLD, renders=1)


def test_kappa_by_hand() -> None:
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 4 + [False] * 6)
    # Agree on 4 + 4 of 10; by chance 0.6 x 0.4 + 0.4 x 0.6 = 0.48.
    assert cohens_kappa(first, second) == pytest.approx((0.8 - 0.48) / 0.52)
    assert cohens_kappa(first, first) == 1
    assert cohens_kappa(first, second | True) is None
