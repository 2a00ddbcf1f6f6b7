"""Bootstrap intervals against the normal approximation and known coverage."""

import tracemalloc

import numpy as np
import pytest

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference


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
    with pytest.raises(ConfigError, match="level"):
        bootstrap_mean([1.0], level=95)
    with pytest.raises(ConfigError, match="one value of each per prompt"):
        paired_difference([1.0, 2.0], [1.0])
