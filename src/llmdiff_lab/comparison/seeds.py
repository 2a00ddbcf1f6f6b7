"""Intervals over the seeds of a training."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.tally import as_figure
from llmdiff.evaluation.statistics import bootstrap_mean

# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom; beyond the table the normal's 1.96.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def seed_interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, low, high and n of one figure over seeds: mean +- t s / sqrt(n), within 0 and 1.

    Raises:
        ConfigError: fewer than two values, which have no spread.

    Source: Student 1908; values of few seeds, taken as normal.
    """
    mean, reach = _mean_and_reach(values)
    return {
        "accuracy": mean,
        "low": max(0.0, mean - reach),
        "high": min(1.0, mean + reach),
        "n": len(values),
    }


def _mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        raise ConfigError(f"values: got {n}, expected at least 2 seeds for an interval over seeds")
    reach = (_T_95[n - 2] if n - 1 <= len(_T_95) else 1.96) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)), reach


def mean_over_seeds(rows: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Over seeds where there are several, else over prompts. NaN: a prompt that the figure does not count."""
    if len(rows) == 1:
        return as_figure(bootstrap_mean(rows[0][~np.isnan(rows[0])]))
    mean, reach = _mean_and_reach([float(np.nanmean(row)) for row in rows])
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": len(rows)}
