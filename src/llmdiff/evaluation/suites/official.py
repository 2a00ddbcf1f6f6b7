"""Exchange files with a benchmark's own scorer: export pictures and scores, read its figures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmdiff.evaluation.metrics.kinds import PictureMetric
from llmdiff.evaluation.picture_store import PictureJob, PictureStore, with_black
from llmdiff.evaluation.score_store import ScoreStore
from llmdiff.evaluation.statistics import bootstrap_mean
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, SuiteScorer
from llmdiff.evaluation.tables import NOT_COMPARABLE
from llmdiff.files import write_whole


def write_official(
    suite: PromptSuite,
    system: str,
    rows: Sequence[SuitePrompt],
    jobs: Sequence[Sequence[PictureJob]],
    store: PictureStore,
    scores: ScoreStore,
    metrics: Sequence[PictureMetric | SuiteScorer],
    folder: Path,
) -> None:
    """Write SYSTEM/pictures as the benchmark's scorer reads them, and our own scores in its file's format.

    A picture that could not be drawn is black there, so that no scorer leaves it out.
    """
    benchmark = BENCHMARKS[suite.name]
    pictures = [with_black([store.read(system, job) for job in row]) for row in jobs]
    benchmark.export_pictures(rows, pictures, folder / system / "pictures")
    for metric in metrics:
        if metric.name != suite.name:
            continue
        found = scores.read(metric.name, metric.model_id, system)
        judged = [[found.get(job.name, {"score": 0.0}) for job in row] for row in jobs]
        place = folder / system / "scores-of-another-model"
        benchmark.write_scores(rows, judged, place / benchmark.scores_name)
        write_whole(place / "README.txt", f"Scored with {metric.model_id}: {NOT_COMPARABLE}.\n")


def official_figures(
    suite: PromptSuite, rows: Sequence[SuitePrompt], file: Path, *, images_per_prompt: int
) -> dict[str, Any]:
    """Return the figures of what the published scorer wrote; a prompt or picture that it lacks counts 0.

    Raises:
        ConfigError: it is no such file or folder, or has none of these prompts.
    """
    found = BENCHMARKS[suite.name].read_scores(file, rows, images_per_prompt)
    scored = [row for row in rows if row.id in found.by_id]
    scores = np.array([found.by_id[row.id] for row in scored])
    tags: dict[str, list[int]] = {}
    for index, row in enumerate(scored):
        for tag in row.tags:
            tags.setdefault(tag, []).append(index)
    by_tag = {tag: asdict(bootstrap_mean(scores[at])) for tag, at in tags.items()}
    return {
        "overall": asdict(bootstrap_mean(scores)),
        "by_tag": by_tag,
        "mean_over_tags": float(np.mean([one["mean"] for one in by_tag.values()])) if by_tag else None,
        "missing": found.missing,
    }
