"""Confidence intervals: over prompts by the bootstrap, over trainings by Student's t."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError

_CHUNK, _RATIO_RESAMPLES = 2_000_000, 2000
# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom; beyond the table the normal's 1.96.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

How = Literal["bootstrap", "t", "bootstrap and Wilson"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n values with its 95 % interval and the method. Reports store it as a dictionary."""

    mean: float
    low: float
    high: float
    n: int
    how: How = "bootstrap"


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = 5000,
) -> Interval:
    """Return the mean and its percentile-bootstrap interval; the same seed gives the same interval.

    Identical values give an interval of zero width, as resampling cannot produce unseen values.

    Raises:
        ConfigError: there are no values.

    Source: Efron 1979; the percentile interval of Efron and Tibshirani 1993, section 13.3.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ConfigError(f"values: got shape {sample.shape}, expected a list of at least one number")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(sample))
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(sample), size=(min(rows, resamples - start), len(sample)))
        means.append(sample[drawn].mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(mean=float(sample.mean()), low=float(low), high=float(high), n=len(sample))


def bootstrap_ratios(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    combine: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda ratios: ratios,
) -> list[Interval]:
    """Return ratios of totals over prompts, and their percentile-bootstrap intervals over prompts.

        f(r),    r_k = (sum over prompts i of sums_ik) / (sum over prompts i of counts_ik)

    This pools questions, as benchmarks do: a prompt with more questions counts more. `combine` is f, for example
    means of several ratios; a ratio without counts is NaN.

    Shapes: sums and counts (prompts, K); `combine` (..., K) -> (..., J); J intervals.
    """
    n = len(sums)
    point = combine(_ratios(sums.sum(0), counts.sum(0)))
    rng = np.random.default_rng(0)
    rows = max(1, _CHUNK // n)
    drawn: list[NDArray[np.float64]] = []
    for start in range(0, _RATIO_RESAMPLES, rows):
        times = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, _RATIO_RESAMPLES - start)).astype(
            np.float64
        )
        drawn.append(combine(_ratios(times @ sums, times @ counts)))
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
    return [
        Interval(mean=float(mean), low=float(a), high=float(b), n=n)
        for mean, a, b in zip(point, low, high, strict=True)
    ]


def _ratios(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    ratios: NDArray[np.float64] = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return ratios


def paired_difference(
    ours: Sequence[float] | NDArray[np.float64], base: Sequence[float] | NDArray[np.float64]
) -> Interval:
    """Return the mean of `ours - base`, prompt by prompt, with its interval.

    Prompts are resampled as pairs, so prompts that are hard for both systems do not widen the interval.

    Raises:
        ConfigError: their lengths differ, or they are empty.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigError(
            f"ours, base: got shapes {first.shape} and {second.shape}, expected one value of each per prompt"
        )
    return bootstrap_mean(first - second)


def over_trainings(
    rows: Sequence[NDArray[np.float64]], *, low: float = -math.inf, high: float = math.inf
) -> Interval:
    """Return the interval over trainings, mean +- t s / sqrt(n), clipped to `low` and `high`; of one, over prompts.

    Prompts with NaN are skipped.

    Shapes: (prompts,) for every training.

    Raises:
        ConfigError: there are no trainings, or one has no values.

    Source: Student 1908; assumes normally distributed values.
    """
    if len(rows) < 2:
        return bootstrap_mean(rows[0][~np.isnan(rows[0])] if rows else [])
    means = [float(np.nanmean(row)) for row in rows]
    n, mean = len(means), float(np.mean(means))
    reach = (_T_95[n - 2] if n - 1 <= len(_T_95) else 1.96) * float(np.std(means, ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, low=max(low, mean - reach), high=min(high, mean + reach), n=n, how="t")


def rank_correlation(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 5000
) -> Interval:
    """Return Spearman's rho of paired values, with its percentile-bootstrap interval over pairs.

    Ties have their mean rank. Resamples in which one side is constant are left out.

    Raises:
        ConfigError: there are fewer than four pairs, the lengths differ, or one side is constant.

    Source: Spearman 1904; the percentile interval of Efron and Tibshirani 1993, section 13.3.
    """
    pairs = np.array([first, second], dtype=np.float64) if len(first) == len(second) else np.empty((2, 0))
    if pairs.shape[1] < 4 or (pairs == pairs[:, :1]).all(1).any():
        raise ConfigError(
            f"first, second: got {len(first)} and {len(second)} values, expected at least four pairs that differ"
        )
    rng = np.random.default_rng(seed)
    resampled = (pairs[:, rng.integers(pairs.shape[1], size=pairs.shape[1])] for _ in range(resamples))
    found = [_rho(one) for one in resampled if not (one == one[:, :1]).all(1).any()]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(mean=_rho(pairs), low=float(low), high=float(high), n=pairs.shape[1])


def _rho(pairs: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks. Shapes: (2, N)."""
    ranks = [np.array([((row < x).sum() + (row <= x).sum() - 1) / 2 for x in row]) for row in pairs]
    return float(np.corrcoef(ranks)[0, 1])


def cohens_kappa(verdicts: NDArray[np.bool_], true: NDArray[np.bool_]) -> float | None:
    """Return Cohen's kappa of a judge against the truth; None if the truth is constant.

    Source: Cohen 1960.
    """
    if true.all() or not true.any():
        return None
    observed = float((verdicts == true).mean())
    yes, yes_true = float(verdicts.mean()), float(true.mean())
    by_chance = yes * yes_true + (1 - yes) * (1 - yes_true)
    return (observed - by_chance) / (1 - by_chance)
