"""Scores of pictures on disk, so that every picture is scored once, by any process."""

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llmdiff.evaluation.metrics.kinds import PictureMetric
from llmdiff.evaluation.picture_store import PictureJob, PictureStore
from llmdiff.evaluation.suites.suite import SuitePrompt, SuiteScorer
from llmdiff.files import not_writable, parse_json
from llmdiff.workers.jobs import HERE, Job, Workers, run_jobs


class ScoreStore:
    """The scores of a run: scores/METRIC/SYSTEM.jsonl, with a line for every picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, metric: str, model_id: str, system: str) -> dict[str, dict[str, Any]]:
        """Return the scores by this metric with this model, by the picture's name."""
        found: dict[str, dict[str, Any]] = {}
        path = self._path(metric, system)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                one = parse_json(line)
            except ValueError:  # a partial last line of a killed process: score again
                continue
            if one["model"] == model_id:
                found[one["picture"]] = one
        return found

    def _path(self, metric: str, system: str) -> Path:
        return self.folder / "scores" / metric / f"{system}.jsonl"

    def add(self, metric: str, model_id: str, system: str, scored: Mapping[str, Mapping[str, Any]]) -> None:
        """Append scores, by the picture's name: `values`, the figures by name, and other results of a scorer.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self._path(metric, system)
        lines = [json.dumps({"picture": name, "model": model_id, **one}) for name, one in scored.items()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A killed process may have left a partial line: start a new one.
            broken = path.exists() and not path.read_bytes().endswith(b"\n")
            with path.open("a") as file:
                file.write(("\n" if broken else "") + "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise not_writable(path, error) from error


class PictureScorer:
    """Scores pictures of a store by several metrics."""

    def __init__(self, metrics: Sequence[PictureMetric | SuiteScorer], store: PictureStore) -> None:
        self._metrics, self._store = metrics, store

    def __call__(
        self, args: tuple[int, str, Sequence[tuple[SuitePrompt, PictureJob]]]
    ) -> list[dict[str, Any]]:
        """Score these pictures of a system with the metric of this index."""
        index, system, pairs = args
        metric, rows = self._metrics[index], [row for row, _ in pairs]
        pictures = [self._store.read(system, job) for _, job in pairs]
        images = np.stack([picture for picture in pictures if picture is not None])
        if isinstance(metric, PictureMetric):
            figures = metric.score(images, [row.prompt for row in rows])
            return [{"values": {name: float(v[i]) for name, v in figures.items()}} for i in range(len(rows))]
        return [{"values": figures_of(metric, one), **one} for one in metric.judge(images, rows)]


def score_missing(
    metrics: Sequence[PictureMetric | SuiteScorer],
    systems: Sequence[str],
    store: PictureStore,
    scores: ScoreStore,
    *,
    batch: int = 16,
    workers: Workers = HERE,
    device: str = "cpu",
) -> None:
    """Compute the missing scores of all pictures, except for pictures that could not be drawn.

    Raises:
        LLMDiffError: a metric cannot be computed, or a worker was killed.
    """
    parts: list[Job] = []
    for (number, metric), system in itertools.product(enumerate(metrics), systems):
        known = scores.read(metric.name, metric.model_id, system)
        todo = [
            (row, job)
            for row, some in store.prompts
            for job in some
            if job.name not in known and store.path(system, job).exists()
        ]
        parts += [
            Job(name=f"{system}: {metric.name}, {some[0][1].name}", args=(number, system, some))
            for start in range(0, len(todo), batch)
            if (some := todo[start : start + batch])
        ]
    make = partial(PictureScorer, list(metrics), store)
    with tqdm(total=len(parts), desc="scoring", unit="batch", mininterval=1, disable=not parts) as bar:
        for done in run_jobs(make, parts, workers, device=device):
            number, system, some = done.job.args
            scored = {job.name: one for (_, job), one in zip(some, done.checked(), strict=True)}
            scores.add(metrics[number].name, metrics[number].model_id, system, scored)
            bar.update()


def figures_of(metric: SuiteScorer, judged: Mapping[str, Any]) -> dict[str, float]:
    """Return a scorer's result as figures: the score under the scorer's name, and its parts."""
    name = metric.name.replace("-", "_")
    score = {name: judged["score"]} if "score" in judged else {}
    return score | {f"{name}: {part}": value for part, value in judged.get("parts", {}).items()}
