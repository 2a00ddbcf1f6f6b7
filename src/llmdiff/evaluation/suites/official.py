"""Exchange files with a benchmark's own scorer: export pictures and scores, read its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llmdiff.errors import ConfigError
from llmdiff.evaluation.figures import mean_over_tags, metric_figures
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.picture_store import PictureStore, with_black
from llmdiff.evaluation.score_store import ScoreStore
from llmdiff.evaluation.suites.benchmark import Benchmark, Results
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, SuiteScorer, prompts_by_tag
from llmdiff.evaluation.tables import NOT_COMPARABLE
from llmdiff.files import whole_file, write_whole


def scorer_results(
    scorer: SuiteScorer,
    system: str,
    store: PictureStore,
    scores: ScoreStore,
) -> Results:
    """Return the stored results of this library's scorer, and `failed` results for pictures without one."""
    found = scores.read(scorer.name, scorer.model_id, system)
    return [
        [found[job.name] if job.name in found else scorer.failed(row) for job in some]
        for row, some in store.prompts
    ]


def published_figures(suite: PromptSuite, rows: Sequence[SuitePrompt], results: Results) -> dict[str, Any]:
    """Return the figures that the benchmark aggregates in its own way, as intervals by name."""
    scored = [(row, some) for row, some in zip(rows, results, strict=True) if "score" in some[0]]
    if not scored:
        return {}
    figures = BENCHMARKS[suite.name].figures([row for row, _ in scored], [some for _, some in scored])
    return {name: asdict(interval) for name, interval in figures.items()}


def export_pictures(
    benchmark: Benchmark, rows: Sequence[SuitePrompt], pictures: Sequence[Pictures], folder: Path, system: str
) -> None:
    """Write the pictures of every prompt as the benchmark's own scorer reads them."""
    for row, images in zip(rows, pictures, strict=True):
        shown = [_sheet(images)] if benchmark.sheet else images
        for number, image in enumerate(shown):
            path = folder / benchmark.picture_path(row, number, len(images), system)
            with whole_file(path) as partial:
                Image.fromarray(image).save(partial, format="PNG")
    for name, text in benchmark.side_files(rows, system).items():
        write_whole(folder / name, text)


def write_official(
    suite: PromptSuite,
    system: str,
    store: PictureStore,
    results: Mapping[str, Results],
    folder: Path,
) -> None:
    """Write SYSTEM/pictures as the benchmark's scorer reads them, and our own scores in its files' format.

    A picture that could not be drawn is black there, so that no scorer leaves it out.

    `results`: results of this library's scorer by the name of its model.
    """
    benchmark = BENCHMARKS[suite.name]
    pictures = [
        with_black([store.read(system, job) for job in jobs], level=benchmark.failed_level)
        for _, jobs in store.prompts
    ]
    export_pictures(benchmark, store.rows, pictures, folder / system / "pictures", system)
    for model_id, found in results.items():
        place = folder / system / "scores-of-another-model"
        benchmark.write_scores(store.rows, found, place, system)
        write_whole(place / "README.txt", f"Scored with {model_id}: {NOT_COMPARABLE}.\n")


def official_figures(
    suite: PromptSuite, rows: Sequence[SuitePrompt], file: Path, *, images_per_prompt: int
) -> dict[str, Any]:
    """Return the figures of the scores that the published scorer wrote; pictures without one count 0 and are reported.

    Raises:
        ConfigError: the file or folder is not the scorer's, or has none of these prompts.
    """
    benchmark = BENCHMARKS[suite.name]
    found = benchmark.read_scores(file, rows, images_per_prompt)
    scored = [row for row in rows if row.id in found.results]
    if not scored:
        raise ConfigError(f"official scores {file}: the published scorer scores none of these prompts")
    lacking = [
        f"{row.id}, picture {number}"
        for row in scored
        for number, one in enumerate(found.results[row.id])
        if one is None
    ]
    results = [
        [benchmark.scorer.failed(row) if one is None else one for one in found.results[row.id]]
        for row in scored
    ]
    scores = np.array([np.mean([one["score"] for one in some]) for some in results])
    means = metric_figures({"score": scores}, prompts_by_tag(scored))
    return {
        "overall": means["metrics"]["score"],
        "by_tag": {tag: one["score"] for tag, one in means["metrics_by_tag"].items()},
        "mean_over_tags": mean_over_tags(means).get("score"),
        "as_published": published_figures(suite, scored, results),
        "stated": dict(found.stated),
        "missing": len(lacking),
        "first_missing": lacking[0] if lacking else None,
        "not_scored": len(rows) - len(scored),
    }


def _sheet(images: Pictures) -> Pictures:
    """Return up to four pictures, two by two. Shapes: (N, H, W, 3) to (2H, 2W, 3)."""
    height, width = images.shape[1:3]
    sheet = np.zeros((2 * height, 2 * width, 3), dtype=np.uint8)
    for number, image in enumerate(images[:4]):
        top, left = height * (number // 2), width * (number % 2)
        sheet[top : top + height, left : left + width] = image
    return sheet
