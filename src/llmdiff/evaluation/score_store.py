"""Scores of pictures on disk, so that every picture is scored once, by any process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdiff.evaluation.metrics.kinds import PictureMetric
from llmdiff.evaluation.picture_store import PictureJob, PictureStore, Shard
from llmdiff.evaluation.suites.suite import SuitePrompt, SuiteScorer
from llmdiff.files import not_writable, parse_json

Scored = Mapping[str, Mapping[str, Any]]
"""Scores by the picture's name: `values`, the figures by name, and further results of a scorer."""


class ScoreStore:
    """The scores of a run: scores/METRIC/SYSTEM.I-of-N.jsonl, with a line for every picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, metric: str, model_id: str, system: str) -> dict[str, dict[str, Any]]:
        """Return the scores by this metric with this model, by the picture's name, from all shards' files."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / "scores" / metric).glob(f"{system}.[0-9]*-of-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    one = parse_json(line)
                except ValueError:  # a partial last line of a killed process: score again
                    continue
                if one["model"] == model_id:
                    found[one["picture"]] = one
        return found

    def add(
        self, metric: str, model_id: str, system: str, shard: Shard, scored: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Append the scores of some pictures.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self.folder / "scores" / metric / f"{system}.{shard}.jsonl"
        lines = [json.dumps({"picture": name, "model": model_id, **one}) for name, one in scored.items()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A killed process may have left a partial line: start a new one.
            broken = path.exists() and not path.read_bytes().endswith(b"\n")
            with path.open("a") as file:
                file.write(("\n" if broken else "") + "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise not_writable(path, error) from error


def score_missing(
    metric: PictureMetric | SuiteScorer,
    systems: Sequence[str],
    rows: Sequence[SuitePrompt],
    jobs: Sequence[Sequence[PictureJob]],
    store: PictureStore,
    scores: ScoreStore,
    *,
    shard: Shard,
    batch: int = 16,
) -> None:
    """Compute the missing scores of the shard's pictures, except for pictures that could not be drawn."""
    for system in systems:
        known = scores.read(metric.name, metric.model_id, system)
        todo = [
            (row, job)
            for position, (row, some) in enumerate(zip(rows, jobs, strict=True))
            for job in some
            if shard.takes(position) and job.name not in known and store.path(system, job).exists()
        ]
        title = f"{system}: {metric.name}"
        for start in tqdm(range(0, len(todo), batch), desc=title, unit="batch", mininterval=1):
            some_todo = todo[start : start + batch]
            images = np.stack([_picture(store, system, job) for _, job in some_todo])
            found = _found(metric, images, [row for row, _ in some_todo])
            names = [job.name for _, job in some_todo]
            scores.add(metric.name, metric.model_id, system, shard, dict(zip(names, found, strict=True)))


def _found(
    metric: PictureMetric | SuiteScorer, images: NDArray[np.uint8], rows: Sequence[SuitePrompt]
) -> list[dict[str, Any]]:
    if isinstance(metric, PictureMetric):
        figures = metric.score(images, [row.prompt for row in rows])
        return [{"values": {name: float(v[i]) for name, v in figures.items()}} for i in range(len(rows))]
    return [{"values": figures_of(metric, one), **one} for one in metric.judge(images, rows)]


def figures_of(metric: SuiteScorer, judged: Mapping[str, Any]) -> dict[str, float]:
    """Return a scorer's result as figures: the score under the scorer's name, and its parts."""
    name = metric.name.replace("-", "_")
    score = {name: judged["score"]} if "score" in judged else {}
    return score | {f"{name}: {part}": value for part, value in judged.get("parts", {}).items()}


def _picture(store: PictureStore, system: str, job: PictureJob) -> NDArray[np.uint8]:
    picture = store.read(system, job)
    assert picture is not None, f"{job.name} has a file but no picture"
    return picture
