"""Win rates, Bradley-Terry strengths and agreement of a study, with intervals."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.statistics import Interval

Array = NDArray[np.float64]

_Z = 1.959964  # 97.5 % of a standard normal distribution lies below it.
_RESAMPLES = 2000
# Added to the wins of both systems of every compared pair: keeps strengths finite.
_PRIOR_WINS = 0.5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Counts of the answers to one question about two systems, by rater and prompt.

    Shapes:
        first_wins, second_wins, ties: (R raters, P prompts).
    """

    first_wins: Array
    second_wins: Array
    ties: Array

    @property
    def answers(self) -> Array:
        """Return the number of all answers. Shapes: (R, P)."""
        return self.first_wins + self.second_wins + self.ties


class Resampling:
    """Bootstrap resamples of raters and prompts, the same for all figures.

    Raters and prompts are drawn independently, since answers of one rater, or about one prompt, are correlated.

    Source: Owen 2007, "The pigeonhole bootstrap".
    """

    def __init__(self, raters: int, prompts: int, *, seed: int = 0, resamples: int = _RESAMPLES) -> None:
        rng = np.random.default_rng(seed)
        self.resamples = resamples
        self._raters = rng.multinomial(raters, np.full(raters, 1 / raters), resamples).astype(np.float64)
        self._prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), resamples).astype(np.float64)

    def sums(self, counts: Array) -> Array:
        """Return the sum over raters and prompts in every resample. Shapes: (R, P) => (resamples,)."""
        sums: Array = ((self._raters @ counts) * self._prompts).sum(1)
        return sums


def win_rate(comparison: Comparison, resampling: Resampling) -> Interval:
    """Return the first system's share of the wins, a tie half a win to each, with its 95 % interval.

    At each end, the interval is the wider one of the bootstrap over raters and prompts, which respects correlated
    answers, and Wilson's, which has a width even if all answers are the same. Without answers, the mean is 0.5 and the
    interval 0 to 1.

    Source: Owen 2007; Wilson 1927.
    """
    points, answers = comparison.first_wins + comparison.ties / 2, comparison.answers
    n = int(answers.sum())
    if not n:
        return Interval(mean=0.5, low=0.0, high=1.0, n=0, how="bootstrap and Wilson")
    mean = float(points.sum()) / n
    low, high = _wilson(mean, n)
    drawn = resampling.sums(answers)
    rates = resampling.sums(points)[drawn > 0] / drawn[drawn > 0]
    if len(rates):
        bootstrap_low, bootstrap_high = np.quantile(rates, [0.025, 0.975])
        low, high = min(low, float(bootstrap_low)), max(high, float(bootstrap_high))
    return Interval(mean=mean, low=low, high=high, n=n, how="bootstrap and Wilson")


def bradley_terry(wins: Array) -> Array:
    """Return the maximum-likelihood strengths s, of mean 0, with P(i beats j) = 1 / (1 + exp(s_j - s_i)).

    Half a win is added to both systems of every pair with answers, so that strengths stay finite.

    Shapes:
        wins (..., S, S), wins[..., i, j] = how often i beat j, a tie half a win to each => (..., S).
    Source: Bradley and Terry 1952; the iteration is that of Hunter 2004, "MM algorithms for generalized
        Bradley-Terry models", equation 3.
    """
    compared = (wins + wins.swapaxes(-1, -2)) > 0
    wins = wins + _PRIOR_WINS * compared
    games = wins + wins.swapaxes(-1, -2)
    won = wins.sum(-1)
    strengths = np.ones(won.shape)
    for _ in range(10_000):
        # p_i <- w_i / sum_j n_ij / (p_i + p_j)
        shares = (games / (strengths[..., :, None] + strengths[..., None, :])).sum(-1)
        updated = np.where(shares > 0, won / np.where(shares > 0, shares, 1), 1.0)
        updated /= np.exp(np.log(updated).mean(-1, keepdims=True))
        change = float(np.abs(np.log(updated / strengths)).max(initial=0.0))
        strengths = updated
        if change < 1e-10:
            break
    # The geometric mean is 1 after every step, so the logarithms have mean 0.
    logs: Array = np.log(strengths)
    return logs


def bradley_terry_intervals(
    comparisons: Mapping[tuple[int, int], Comparison], systems: int, resampling: Resampling
) -> list[Interval]:
    """Return every system's strength with its 95 % bootstrap interval; `n` counts the answers about it."""
    wins = np.zeros((systems, systems))
    drawn = np.zeros((resampling.resamples, systems, systems))
    counts = np.zeros(systems)
    for (first, second), comparison in comparisons.items():
        for winner, loser, won in (
            (first, second, comparison.first_wins + comparison.ties / 2),
            (second, first, comparison.second_wins + comparison.ties / 2),
        ):
            wins[winner, loser] = won.sum()
            drawn[:, winner, loser] = resampling.sums(won)
        counts[[first, second]] += comparison.answers.sum()
    strengths = bradley_terry(wins)
    low, high = np.quantile(bradley_terry(drawn), [0.025, 0.975], axis=0)
    return [
        Interval(mean=float(s), low=float(min(s, a)), high=float(max(s, b)), n=int(n))
        for s, a, b, n in zip(strengths, low, high, counts, strict=True)
    ]


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha on nominal values: 1 perfect, 0 by chance; None if nothing can be compared.

    `units`: the values that every judged item was given.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", nominal data.
    """
    counted = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = sum(counted, Counter())
    n = sum(totals.values())
    expected = n * n - sum(count * count for count in totals.values())
    if not expected:
        return None
    observed = sum(
        (sum(unit.values()) ** 2 - sum(count * count for count in unit.values())) / (sum(unit.values()) - 1)
        for unit in counted
    )
    return 1 - (n - 1) * observed / expected


def percent_agreement(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return the share of pairs of raters that agree, over all units; None if no unit was judged twice."""
    agreeing = pairs = 0
    for unit in units:
        pairs += math.comb(len(unit), 2)
        agreeing += sum(math.comb(count, 2) for count in Counter(unit).values())
    return agreeing / pairs if pairs else None


def _wilson(mean: float, n: int) -> tuple[float, float]:
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
