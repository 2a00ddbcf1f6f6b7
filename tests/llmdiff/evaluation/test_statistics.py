"""Intervals: the bootstrap against the normal approximation and known coverage, Student's t by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_ratios,
    over_trainings,
    paired_difference,
    rank_correlation,
)


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = bootstrap_mean(values)
    reach = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.03)
    assert interval.n == 400


def test_it_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        interval = bootstrap_mean(rng.random(100) < 0.7, seed=trial, resamples=600)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0, 1, 1, 0, 1]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean([1.0] * 5) == bootstrap_mean([1.0] * 5, seed=9)


def test_large_samples_are_drawn_in_parts() -> None:
    count, resamples = 30_000, 1_000
    values = np.random.default_rng(2).random(count)
    tracemalloc.start()
    try:
        interval = bootstrap_mean(values, resamples=resamples)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low < 0.01
    # All resamples at once hold two such arrays: the numbers of the values, and the values.
    assert peak_bytes < count * resamples * 8 / 4


def test_pairing_takes_out_what_both_find_hard() -> None:
    rng = np.random.default_rng(3)
    hardness = rng.normal(0, 5, size=200)
    ours, base = hardness + 0.5 + rng.normal(0, 0.1, 200), hardness + rng.normal(0, 0.1, 200)
    paired = paired_difference(ours, base)
    assert paired.low > 0.45
    assert paired.high < 0.55
    assert bootstrap_mean(ours).high - bootstrap_mean(ours).low > 10 * (paired.high - paired.low)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="values"):
        bootstrap_mean([])
    with pytest.raises(ConfigError, match="one value of each per prompt"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_interval_over_trainings_is_students() -> None:
    values = [0.50, 0.56, 0.53]
    spread = math.sqrt(sum((v - 0.53) ** 2 for v in values) / 2)
    reach = 4.302653 * spread / math.sqrt(3)
    found = over_trainings([np.array([value]) for value in values])
    assert found.mean == pytest.approx(0.53)
    assert (found.low, found.high) == pytest.approx((0.53 - reach, 0.53 + reach), abs=1e-4)
    assert (found.n, found.how) == (3, "t")
    assert over_trainings([np.array([0.0]), np.array([0.2])], low=0.0, high=1.0).low == 0.0
    many = over_trainings([np.array([0.4]), np.array([0.6])] * 50)
    assert many.high - 0.5 == pytest.approx(1.96 * math.sqrt(100 * 0.01 / 99) / 10, rel=1e-3)


def test_an_interval_over_trainings_skips_prompts_that_do_not_count() -> None:
    found = over_trainings([np.array([1.0, np.nan, 3.0]), np.array([4.0, np.nan, 4.0])])
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - 12.706, 3 + 12.706), abs=1e-3)
    alone = over_trainings([np.array([1.0, np.nan, 3.0])])
    assert alone == bootstrap_mean([1.0, 3.0])
    for none in ([], [np.array([np.nan])]):
        with pytest.raises(ConfigError, match="at least one number"):
            over_trainings(none)


def test_ratios_of_totals_and_figures_made_of_them() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 4, (60, 3)).astype(float)
    sums = np.array(
        [[rng.binomial(int(n), p) for n, p in zip(row, (0.2, 0.5, 0.9), strict=True)] for row in counts]
    )
    a, b, c, mean = bootstrap_ratios(
        sums, counts, lambda r: np.concatenate([r, r.mean(-1, keepdims=True)], axis=-1)
    )
    for index, one in enumerate((a, b, c)):
        assert one.mean == pytest.approx(sums[:, index].sum() / counts[:, index].sum())
    assert mean.mean == pytest.approx((a.mean + b.mean + c.mean) / 3)
    # The delta method's standard error of a ratio of totals, an independent reckoning of the interval's width.
    error = np.sqrt(np.sum((sums[:, 1] - b.mean * counts[:, 1]) ** 2)) / counts[:, 1].sum()
    assert (b.high - b.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert b.low < b.mean < b.high
    # One question a prompt: the ordinary bootstrap of a mean.
    plain, ordinary = bootstrap_ratios(sums[:, :1], np.ones((60, 1)))[0], bootstrap_mean(sums[:, 0])
    assert (plain.mean, plain.low, plain.high) == pytest.approx(
        (ordinary.mean, ordinary.low, ordinary.high), abs=0.03
    )


def test_rank_correlation_is_spearmans_with_ties() -> None:
    first, second = [1.0, 2.0, 2.0, 4.0, 9.0, 5.0], [0.3, 0.1, 0.4, 0.6, 0.9, 0.6]
    # Ranks 1, 2.5, 2.5, 4, 6, 5 and 2, 1, 3, 4.5, 6, 4.5, worked out by hand.
    expected = np.corrcoef([1, 2.5, 2.5, 4, 6, 5], [2, 1, 3, 4.5, 6, 4.5])[0, 1]
    found = rank_correlation(first, second)
    assert found.mean == pytest.approx(expected)
    assert found.low < found.mean <= found.high <= 1
    assert found.n == 6
    assert rank_correlation(first, [-x for x in first]).mean == pytest.approx(-1)
    noise = np.random.default_rng(0).random((2, 200))
    assert abs(rank_correlation(*noise).mean) < 0.2
    for wrong in ([1.0, 2.0], [3.0] * 6):
        with pytest.raises(ConfigError, match="at least four pairs"):
            rank_correlation(first, wrong)
