"""Read the folder of one system, trained and evaluated with one seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.picture_store import DRAWN_NAME
from llmdiff.files import read_json
from llmdiff.training.log import read_log

SEARCH_NAME = "search.json"
"""File in a system's folder with the losses of its search for a learning rate."""

EXACT = "scenes"
"""The figure for exactly correct pictures; `scenes: PART` are the figures of parts."""

IN_FULL = "in full"
"""Key in it of the losses of full trainings."""

# Subfolders of a training's stages in order, see `AdapterTraining`.
_STAGES = ("gains", "warm-start", ".")
_FROM_TEXT = "unexplained"  # the loss of steps on captions alone

Exact = NDArray[np.float64]
"""Whether pictures are exactly correct, (seeds, prompts)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One system, trained and evaluated with one seed.

    Fields:
        report: report of its evaluation. prompts: figures of every prompt, in the suite's order.
        trained: cost of its training. curve: (step, denoising loss).
        text_curve: (step, unexplained share of variance) of the steps from captions alone, which may be empty.
        training_seconds: duration of all its steps; None if it is not trained.
        search: losses of its system's search for a learning rate, see `RateSearch`; empty without one.
        pictures: the folder with a picture of every prompt, NUMBER-0.png.
    """

    system: str
    seed: int
    report: Mapping[str, Any]
    prompts: Sequence[Mapping[str, Any]]
    trained: Mapping[str, Any]
    curve: Sequence[tuple[int, float]]
    pictures: Path
    text_curve: Sequence[tuple[int, float]] = ()
    training_seconds: float | None = None
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Return the split of every prompt."""
        return [line["tags"][0] for line in self.prompts]

    def figure(self, name: str) -> NDArray[np.float64]:
        """Return a figure of every prompt; NaN if it does not apply to the prompt. Shapes: (prompts,)."""
        return np.array([line["values"].get(name, np.nan) for line in self.prompts], dtype=np.float64)

    def figures(self) -> list[str]:
        """Return the names of the figures, the checker's first."""
        return list(dict.fromkeys(name for line in self.prompts for name in line["values"]))


def read_run(place: Path, system: str, seed: int, *, logs: Path | None = None) -> Run:
    """Read a finished run from its folder. `logs` is the folder of its training, None: in it."""
    evaluation, stages = place / "evaluation", _logs(logs or place / "training")
    lines = (evaluation / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(
        system=system,
        seed=seed,
        report=read_json(evaluation / "report.json"),
        prompts=[json.loads(line) for line in lines],
        trained=read_json(place / "trained.json"),
        # The base's training adds a second loss to its own objective, which is "velocity".
        curve=_curve(stages, lambda line: None if _FROM_TEXT in line else line.get("velocity", line["loss"])),
        text_curve=_curve(stages, lambda line: line.get(_FROM_TEXT)),
        training_seconds=_seconds(stages),
        pictures=evaluation / DRAWN_NAME / system,
        search=read_search(place.parent),
    )


def read_search(folder: Path) -> dict[str, Any]:
    """Return the losses on held-out scenes by learning rate, and under "in full" those of full trainings."""
    path = folder / SEARCH_NAME
    return read_json(path) if path.exists() else {}


def exact_by_prompt(runs: Sequence[Run]) -> dict[str, Exact]:
    """Return for every split which prompts one system's runs (one for each seed) draw exactly right."""
    splits = np.array(runs[0].splits)
    exact = np.stack([run.figure(EXACT) for run in runs])
    return {split: exact[:, splits == split] for split in dict.fromkeys(runs[0].splits)}


def values_by_prompt(runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """Return the mean over seeds of every metric's figure for each prompt."""
    return {name: np.mean([run.figure(name) for run in runs], axis=0) for name in metric_names(runs)}


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of metrics' figures that all runs have, besides the checker's."""
    names = [name for name in runs[0].figures() if name.partition(":")[0] != EXACT]
    return [name for name in names if all(name in run.figures() for run in runs[1:])]


def _logs(training: Path) -> list[list[dict[str, Any]]]:
    """Return the log lines of every stage that was trained, in order."""
    logs = [training / stage / "log.jsonl" for stage in _STAGES]
    return [[line for line in read_log(log) if "loss" in line] for log in logs if log.exists()]


def _curve(
    stages: Sequence[Sequence[Mapping[str, Any]]], figure: Callable[[Mapping[str, Any]], float | None]
) -> list[tuple[int, float]]:
    """Return one figure of the stages that have it, concatenated in order."""
    points: list[tuple[int, float]] = []
    for lines in stages:
        before = points[-1][0] if points else 0
        found = [(int(line["step"]), figure(line)) for line in lines]
        points += [(before + step, float(value)) for step, value in found if value is not None]
    return points


def _seconds(stages: Sequence[Sequence[Mapping[str, Any]]]) -> float | None:
    """Return the duration of all stages at their median speeds, which are robust against other load."""
    timed = [[line for line in lines if "steps_per_s" in line] for lines in stages]
    times = [
        lines[-1]["step"] / float(np.median([line["steps_per_s"] for line in lines]))
        for lines in timed
        if lines
    ]
    return sum(times) if times else None
