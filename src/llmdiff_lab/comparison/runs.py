"""One system, trained and evaluated with one seed: what its folder holds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.evaluation.report import PICTURES_NAME
from llmdiff.files import read_json
from llmdiff.training.log import read_log
from llmdiff_lab.comparison.measures import Measured, read_measured

SEARCH_NAME = "search.json"
"""Of a system's folder: what its search for a learning rate has found."""

IN_FULL = "in full"
"""In it: the losses of the trainings in full."""

# Of a training's folder, in the order in which they are trained, see `train_conditioning`.
_STAGES = ("gains", "warm", "main")
_FROM_TEXT = "unexplained"  # the loss of steps on captions alone

Exact = NDArray[np.float64]
"""Whether a picture is exactly as asked for, (seeds, prompts)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One system, trained and evaluated with one seed.

    Fields:
        report: of its evaluation. verdicts: a line for every prompt, in the suite's order.
        trained: what its training cost. curve: (step, denoising loss).
        text_curve: (step, what the base's text states leave unexplained), from captions alone; empty without that.
        training_seconds: of all its steps; None where it is not trained.
        search: what its system's search for a learning rate found, see `trainings`; empty without one.
        measured: what metrics say of its pictures.
        pictures: the folder with a picture of every prompt, NUMBER.png.
    """

    system: str
    seed: int
    report: Mapping[str, Any]
    verdicts: Sequence[Mapping[str, Any]]
    trained: Mapping[str, Any]
    curve: Sequence[tuple[int, float]]
    pictures: Path
    text_curve: Sequence[tuple[int, float]] = ()
    training_seconds: float | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)


def read_run(place: Path, system: str, seed: int) -> Run:
    """Return what a finished run left in its folder."""
    evaluation, stages = place / "evaluation", _logs(place / "training")
    lines = (evaluation / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(
        system=system,
        seed=seed,
        report=read_json(evaluation / "report.json"),
        verdicts=[json.loads(line) for line in lines],
        trained=read_json(place / "trained.json"),
        # The base's training adds a second loss to its own objective, which is "velocity".
        curve=_curve(stages, lambda line: None if _FROM_TEXT in line else line.get("velocity", line["loss"])),
        text_curve=_curve(stages, lambda line: line.get(_FROM_TEXT)),
        training_seconds=_seconds(stages),
        pictures=evaluation / PICTURES_NAME / system,
        search=read_search(place.parent),
        measured=read_measured(evaluation),
    )


def read_search(folder: Path) -> dict[str, Any]:
    """Return the losses on held-out scenes by learning rate, "in full" those of trainings in full; empty if none."""
    path = folder / SEARCH_NAME
    return read_json(path) if path.exists() else {}


def exact_by_prompt(runs: Sequence[Run]) -> dict[str, Exact]:
    """Return for every split what one system's runs, one for each seed, have right of its prompts."""
    found: dict[str, list[list[float]]] = {}
    for run in runs:
        for split in dict.fromkeys(line["split"] for line in run.verdicts):
            lines = [line for line in run.verdicts if line["split"] == split]
            found.setdefault(split, []).append([float(line["verdict"]["exact"]) for line in lines])
    return {split: np.asarray(rows) for split, rows in found.items()}


def values_by_prompt(runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """Of every metric's figure the mean over seeds of each prompt."""
    values = [run.measured.values for run in runs]
    names = [name for name in values[0] if all(name in row for row in values)]
    return {name: np.mean([row[name] for row in values], axis=0) for name in names}


def _logs(training: Path) -> list[list[dict[str, Any]]]:
    """The log lines of every stage that was trained, in order."""
    logs = [training / stage / "log.jsonl" for stage in _STAGES]
    return [[line for line in read_log(log) if "loss" in line] for log in logs if log.exists()]


def _curve(
    stages: Sequence[Sequence[Mapping[str, Any]]], figure: Callable[[Mapping[str, Any]], float | None]
) -> list[tuple[int, float]]:
    """One figure of the stages that have it, one stage after the other."""
    points: list[tuple[int, float]] = []
    for lines in stages:
        before = points[-1][0] if points else 0
        found = [(int(line["step"]), figure(line)) for line in lines]
        points += [(before + step, float(value)) for step, value in found if value is not None]
    return points


def _seconds(stages: Sequence[Sequence[Mapping[str, Any]]]) -> float | None:
    """Every stage's steps at its median speed: what a machine does beside a training comes and goes."""
    timed = [[line for line in lines if "steps_per_s" in line] for lines in stages]
    times = [
        lines[-1]["step"] / float(np.median([line["steps_per_s"] for line in lines]))
        for lines in timed
        if lines
    ]
    return sum(times) if times else None
