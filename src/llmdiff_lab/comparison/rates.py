"""Search the learning rate of each rival by the loss on held-out scenes."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.checks.bounds import LEARNING_RATE
from llmdiff.files import write_whole
from llmdiff.training.log import read_log
from llmdiff_lab.comparison.runs import IN_FULL, SEARCH_NAME, read_search

DIVERGED = 1e9
"""The loss recorded for a diverged training, larger than any other."""
# A difference of the loss on held-out scenes that counts. Seeds of one system differ by as much.
_CLEARLY = 1e-3


class RateSearch:
    """The search for the learning rates of rivals. The losses of NAME are in FOLDER/NAME/search.json.

    Args:
        rates: rates to try first.
        share: length of the short trainings as a share of full ones.
        loss_after: (rival, rate, share) => loss on held-out scenes after a training of this length, seed 0.
    """

    def __init__(
        self,
        folder: Path,
        rates: Sequence[float],
        share: float,
        loss_after: Callable[[str, float, float], float],
    ) -> None:
        self._folder, self._rates, self._share, self._loss_after = folder, rates, share, loss_after

    def best(self, name: str) -> float:
        """Return the rate with the lowest loss after a short training; a single rate is not tried.

        While the best rate is the lowest or the highest tried, the next one by the same factor is tried too. If
        `check_in_full` found a clearly lower loss at the next lower rate, return that rate.
        """
        if len(self._rates) == 1:
            return self._rates[0]
        losses = read_search(self._folder / name)
        wanted = list(self._rates)
        while wanted:
            for rate in wanted:
                if str(rate) not in losses:
                    losses[str(rate)] = self._loss_after(name, rate, self._share)
                    self._save(name, losses)
            tried = _rates_in(losses)
            best = min(tried, key=lambda rate: losses[str(rate)])
            wanted = _further(best, tried)
        full: dict[str, float] = losses.get(IN_FULL, {})
        lower = _next_lower(losses, best)
        if len(full) == 2 and full[str(best)] - full[str(lower)] > _CLEARLY:
            return lower
        return best

    def check_in_full(self, name: str, rate: float, loss: float, discard: Callable[[], None]) -> None:
        """Try the next lower rate in a full training if the best one is the highest of `rates` or higher.

        Short trainings favour high rates. `loss` is that of the full training with `rate`; `discard` is called to
        delete that training if the lower rate is clearly better.
        """
        losses = read_search(self._folder / name)
        lower = _next_lower(losses, rate)
        if rate < max(self._rates) or lower == rate or IN_FULL in losses:
            return
        found = self._loss_after(name, lower, 1.0)
        if loss - found > _CLEARLY:
            discard()  # before saving: a process killed in between only repeats the training with `rate`
        self._save(name, losses | {IN_FULL: {str(rate): loss, str(lower): found}})

    def _save(self, name: str, losses: Mapping[str, Any]) -> None:
        write_whole(self._folder / name / SEARCH_NAME, json.dumps(losses, indent=1) + "\n")


def held_out_loss(training: Path) -> float:
    """Return the mean loss of a finished training on held-out scenes, which are the same for all trainings."""
    return [
        line["validation_loss"] for line in read_log(training / "log.jsonl") if "validation_loss" in line
    ][-1]


def _rates_in(losses: Mapping[str, Any]) -> list[float]:
    return sorted(float(rate) for rate in losses if rate != IN_FULL)


def _next_lower(losses: Mapping[str, Any], rate: float) -> float:
    return max((one for one in _rates_in(losses) if one < rate), default=rate)


def _further(best: float, tried: Sequence[float]) -> list[float]:
    """Return the next rate to try if the best one is the lowest or the highest of those tried; else nothing."""
    if best == tried[0]:
        further = best * tried[0] / tried[1]
    elif best == tried[-1]:
        further = best * tried[-1] / tried[-2]
    else:
        return []
    further = float(f"{further:.3g}")
    return [further] if LEARNING_RATE.holds(further) else []
