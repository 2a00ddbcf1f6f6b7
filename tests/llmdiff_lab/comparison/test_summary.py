"""Differences by hand, and the memory that is measured."""

import gc

import numpy as np
import pytest
import torch

from llmdiff_lab.comparison.memory import PeakMemory
from llmdiff_lab.comparison.summary import differences


def test_the_peak_counts_what_is_gone_at_the_end():
    gc.collect()  # what other tests have left would go while this one measures
    with PeakMemory(torch.device("cpu")) as memory:
        before_gb = memory.peak_gb
        big = torch.ones(75_000_000)
        assert memory._ended.wait(0.5) is False
        del big
    assert memory.peak_gb > before_gb + 0.2


def test_differences_are_prompt_by_prompt_and_over_the_right_splits():
    ours = {
        "seen": np.array([[1.0, 1.0]]),
        "pairs": np.array([[1.0, 0.5]]),
        "synonyms": np.array([[0.0, 0.0]]),
    }
    base = {
        "seen": np.array([[0.0, 0.0]]),
        "pairs": np.array([[0.0, 0.5]]),
        "synonyms": np.array([[0.0, 1.0]]),
    }
    gaps = differences(ours, base)
    assert {name: gap["mean"] for name, gap in gaps.items()} == {
        "overall": 2 / 6, "held_out": 0.0, "seen": 1.0, "pairs": 0.5, "synonyms": -0.5,
    }  # fmt: skip
    assert not any("over_seeds" in gap for gap in gaps.values())


def test_a_difference_over_seeds_pairs_the_seeds_where_it_can():
    ours = {"pairs": np.array([[1.0, 0.0], [1.0, 1.0]])}
    three = {"pairs": np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])}
    assert "over_seeds" not in differences(ours, three)["pairs"]
    once = {"pairs": np.array([[0.0, 1.0]])}
    for gap, sign in ((differences(ours, once), 1), (differences(once, ours), -1)):
        assert gap["pairs"]["mean"] == gap["pairs"]["over_seeds"]["mean"] == sign * 0.25
        assert gap["pairs"]["over_seeds"]["high"] == pytest.approx(sign * 0.25 + 12.706 * 0.25)
