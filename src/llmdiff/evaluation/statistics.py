"""Intervals: how sure a mean over prompts is, and a difference of two systems on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError

_CHUNK = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = 5000,
    level: float = 0.95,
) -> Interval:
    """The mean and its percentile-bootstrap interval; the same seed gives the same interval.

    Values that are all alike give an interval of no width: resampling cannot show what was never seen.

    Raises:
        ConfigError: no values, or `level` or `resamples` out of range.

    Source: Efron 1979; the percentile interval of Efron and Tibshirani 1993, section 13.3.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ConfigError(f"values: got shape {sample.shape}, expected a list of at least one number")
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(
            f"level, resamples: got {level} and {resamples}, expected a level between 0 and 1 and at least 1"
        )
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(sample))
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(sample), size=(min(rows, resamples - start), len(sample)))
        means.append(sample[drawn].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(sample.mean()), low=float(low), high=float(high), n=len(sample))


def paired_difference(
    ours: Sequence[float] | NDArray[np.float64],
    base: Sequence[float] | NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = 5000,
    level: float = 0.95,
) -> Interval:
    """The mean of `ours - base`, prompt by prompt, with its interval.

    Whole prompts are resampled, so what both systems find hard widens nothing.

    Raises:
        ConfigError: the two are not of the same length, or empty.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigError(
            f"ours, base: got shapes {first.shape} and {second.shape}, expected one value of each per prompt"
        )
    return bootstrap_mean(first - second, seed=seed, resamples=resamples, level=level)
