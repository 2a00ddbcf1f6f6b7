"""A study's figures against closed forms, a published example and simulation."""

from typing import Any

import numpy as np
import pytest

from llmdiff_lab.study.statistics import (
    Comparison,
    Resampling,
    bradley_terry,
    bradley_terry_intervals,
    krippendorff_alpha,
    percent_agreement,
    win_rate,
)


def comparison(first: Any, second: Any, ties: Any = 0) -> Comparison:
    shape = np.broadcast_shapes(np.shape(first), np.shape(second))
    return Comparison(
        **{
            name: np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
            for name, value in {"first_wins": first, "second_wins": second, "ties": ties}.items()
        }
    )


def test_win_rates() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, (12, 20))
    rate = win_rate(comparison(first, 1 - first), Resampling(12, 20))
    assert rate.n == 240
    assert rate.mean == pytest.approx(first.mean())
    # Independent answers: Wilson's interval, from its textbook formula, is inside of ours and near it.
    p, n, z = first.mean(), 240, 1.96
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert rate.high - rate.low >= 2 * half * 0.999
    assert rate.high - rate.low < 2 * half * 1.8
    # All that one prompt gets is alike: 20 prompts are then what is known, not 240 answers.
    alike = np.broadcast_to(rng.integers(0, 2, (1, 20)), (12, 20))
    clustered = win_rate(comparison(alike, 1 - alike), Resampling(12, 20))
    assert clustered.high - clustered.low > 2.5 * 2 * half
    # Nothing but wins still leaves doubt.
    sure = win_rate(comparison(np.ones((1, 5)), np.zeros((1, 5))), Resampling(1, 5))
    assert (sure.mean, sure.high) == (1.0, 1.0)
    assert 0.5 < sure.low < 0.6
    ties = win_rate(comparison(np.zeros((2, 3)), np.zeros((2, 3)), 1), Resampling(2, 3))
    assert ties.mean == 0.5


def test_win_rate_intervals_cover() -> None:
    """Simulated studies whose raters and prompts differ: the true rate lies inside 19 times out of 20."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        taste = rng.normal(0, 0.7, (10, 1)) + rng.normal(0.0, 0.9, (1, 25))
        first = rng.random((10, 25)) < 1 / (1 + np.exp(-taste))
        rate = win_rate(comparison(first, ~first), Resampling(10, 25, resamples=400))
        inside += rate.low <= 0.5 <= rate.high
    assert inside >= 90


def test_bradley_terry() -> None:
    # Two systems have a closed form: the log odds, with half a win added either way.
    wins = np.array([[0.0, 15.0], [5.0, 0.0]])
    difference = np.subtract(*bradley_terry(wins))
    assert difference == pytest.approx(np.log(15.5 / 5.5))
    # The likelihood is flat at its maximum: expected wins are the wins, for every system.
    wins = np.array([[0, 7, 9, 3], [4, 0, 8, 2], [1, 5, 0, 6], [8, 2, 3, 0.0]])
    strengths = bradley_terry(wins)
    assert strengths.mean() == pytest.approx(0)
    expected = (wins + wins.T + 1 - np.eye(4)) / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(expected.sum(1), (wins + 0.5 * (1 - np.eye(4))).sum(1), atol=1e-6)
    # In batches as alone; a system that won all stays finite; one never compared stays where it is.
    np.testing.assert_allclose(bradley_terry(np.stack([wins, wins.T]))[0], strengths, atol=1e-6)
    assert np.isfinite(bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()
    assert bradley_terry(np.zeros((3, 3))) == pytest.approx(np.zeros(3))

    first = np.ones((4, 6))
    intervals = bradley_terry_intervals({(0, 1): comparison(first, first)}, 2, Resampling(4, 6))
    assert [one.n for one in intervals] == [48, 48]
    assert intervals[0].low <= 0 <= intervals[0].high


def test_agreement() -> None:
    # The worked example of Krippendorff 2011, four observers and twelve units: alpha = 0.743.
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a"], []]) is None
    assert percent_agreement([["a", "a", "b"], ["b"]]) == pytest.approx(1 / 3)
    assert percent_agreement([["a"]]) is None
