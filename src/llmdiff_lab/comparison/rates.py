"""Which learning rates a search tries, and how it judges them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.checks.bounds import LEARNING_RATE
from llmdiff.training.log import read_log
from llmdiff_lab.comparison.runs import IN_FULL

DIVERGED = 1e9
"""The loss that stands for a training that diverged: more than any other."""


def held_out_loss(training: Path) -> float:
    """Return the mean loss of a finished training on scenes that none is trained on, the same for all."""
    return [
        line["validation_loss"] for line in read_log(training / "log.jsonl") if "validation_loss" in line
    ][-1]


def rates_in(losses: Mapping[str, Any]) -> list[float]:
    """Return the learning rates that were tried, from low to high."""
    return sorted(float(rate) for rate in losses if rate != IN_FULL)


def beyond(best: float, tried: Sequence[float]) -> list[float]:
    """Return the next rate to try if the best of those tried has none below or above it; else nothing."""
    if best == tried[0]:
        further = best * tried[0] / tried[1]
    elif best == tried[-1]:
        further = best * tried[-1] / tried[-2]
    else:
        return []
    further = float(f"{further:.3g}")
    return [further] if LEARNING_RATE.holds(further) else []
