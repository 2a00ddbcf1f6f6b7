"""One system, trained and evaluated with one seed: what its folder holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.benchmark.measures import Measured, read_measured
from llmdiff.evaluation.report import PICTURES_NAME
from llmdiff.training.log import read_log

SEARCH_NAME = "search.json"
"""Of a system's folder: what its search for a learning rate has found."""

IN_FULL = "in full"
"""In it: the losses of the trainings in full."""

Exact = NDArray[np.float64]
"""By prompt the share of seeds in which the picture is exactly as asked for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One system, trained and evaluated with one seed.

    Fields:
        report: of its evaluation. verdicts: a line for every prompt, in the suite's order.
        trained: what its training cost. curve: (step, loss).
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
    search: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)


def read_run(place: Path, system: str, seed: int) -> Run:
    """Return what a finished run left in its folder."""
    evaluation = place / "evaluation"
    lines = (evaluation / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(
        system=system,
        seed=seed,
        report=json.loads((evaluation / "report.json").read_text(encoding="utf-8")),
        verdicts=[json.loads(line) for line in lines],
        trained=json.loads((place / "trained.json").read_text(encoding="utf-8")),
        curve=_curve(place / "training"),
        pictures=evaluation / PICTURES_NAME / system,
        search=read_search(place.parent),
        measured=read_measured(evaluation),
    )


def read_search(folder: Path) -> dict[str, Any]:
    """Return the losses on held-out scenes by learning rate, "in full" those of trainings in full; empty if none."""
    path = folder / SEARCH_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def exact_by_prompt(runs: Sequence[Run]) -> dict[str, Exact]:
    """Return for every split what one system's runs, one for each seed, have right of its prompts."""
    found: dict[str, list[list[float]]] = {}
    for run in runs:
        for split in dict.fromkeys(line["split"] for line in run.verdicts):
            lines = [line for line in run.verdicts if line["split"] == split]
            found.setdefault(split, []).append([float(line["verdict"]["exact"]) for line in lines])
    return {split: np.asarray(rows).mean(0) for split, rows in found.items()}


def values_by_prompt(runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """Of every metric's figure the mean over seeds of each prompt."""
    values = [run.measured.values for run in runs]
    names = [name for name in values[0] if all(name in row for row in values)]
    return {name: np.mean([row[name] for row in values], axis=0) for name in names}


def _curve(training: Path) -> list[tuple[int, float]]:
    """The denoising losses of all stages, one after the other."""
    points: list[tuple[int, float]] = []
    for stage in ("gains", "main"):
        log = training / stage / "log.jsonl"
        before = points[-1][0] if points else 0
        if log.exists():
            # What a start from text logs is no denoising loss.
            lines = [line for line in read_log(log) if "loss" in line and "unexplained" not in line]
            # The base's training adds a second loss to its own objective, which is "velocity".
            points += [
                (before + int(line["step"]), float(line.get("velocity", line["loss"]))) for line in lines
            ]
    return points
