"""Evaluate systems on a suite of prompts: draw, score, and write figures, samples and official files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.drawing.grids import save_grid
from llmdiff.environment import provenance
from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.figures import (
    Values,
    mean_over_tags,
    metric_differences,
    metric_figures,
    prompt_values,
)
from llmdiff.evaluation.metrics.kinds import DiversityMetric, Metric, PictureMetric, SetMetric
from llmdiff.evaluation.metrics.reference import set_features
from llmdiff.evaluation.picture_store import PictureJob, PictureStore, draw_missing
from llmdiff.evaluation.score_store import ScoreStore, score_missing
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS
from llmdiff.evaluation.suites.official import (
    official_figures,
    published_figures,
    scorer_results,
    write_official,
)
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, SuiteScorer, prompts_by_tag
from llmdiff.evaluation.systems import BASE, System
from llmdiff.evaluation.tables import NOT_COMPARABLE, report_tables
from llmdiff.files import writable_folder, write_whole
from llmdiff.workers.jobs import HERE, Workers

_SAMPLES, _COLUMNS = 24, 6


def evaluate_suite(
    systems: Mapping[str, System],
    suite: PromptSuite,
    out: str | Path,
    *,
    prompts_per_tag: int | None = None,
    images_per_prompt: int | None = None,
    metrics: Sequence[Metric | SuiteScorer] = (),
    reference: Iterable[NDArray[np.uint8]] | None = None,
    official_scores: Mapping[str, Path] | None = None,
    workers: Workers = HERE,
    make_systems: Callable[[], Mapping[str, System]] | None = None,
    device: str = "cpu",
    batch: int = 16,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Evaluate systems on a suite with the same prompts and seeds; return the report.

    Worker processes create the systems with `make_systems`, or else receive them by pickle; metrics are always
    pickled. On `device` "cuda" every worker has its own GPU. Existing pictures and scores in `out` are reused. A
    picture that could not be drawn has the metric's `failed_score`. Written to `out`: drawn/SYSTEM/*.png, scores/,
    samples-SYSTEM.png, prompts.jsonl (the figures of every prompt), report.json and report.md; for a published
    benchmark also official/SYSTEM, in the layout that its own scorer reads.

    Raises:
        OutputError: `out` cannot be written; checked before drawing.
        ConfigError: `out` has pictures with other settings, there are no systems, or official scores do not match.
        MetricError: a metric lacks what it needs.
        LLMDiffError: a system could draw nothing.
    """
    count = suite.images_per_prompt if images_per_prompt is None else images_per_prompt
    rows = suite.prompts if prompts_per_tag is None else suite.first(prompts_per_tag)
    official, folder = dict(official_scores or {}), Path(out)
    if not systems or not rows:
        raise ConfigError(
            f"systems, suite: got {len(systems)} and {len(rows)} prompts, expected at least one of each"
        )
    check_metrics(metrics, suite, count, has_reference=reference is not None)
    _check_official(official, suite, systems, folder)
    made_with = {**(settings or {}), "suite": suite.name, "suite_sha256": suite.sha256, "suite_seed": seed}
    prompts = [(row, _jobs(row, index, count, seed)) for index, row in enumerate(rows)]
    store, scores = PictureStore(writable_folder(folder), prompts), ScoreStore(folder)
    store.check_settings(made_with | {"prompts_per_tag": prompts_per_tag, "systems": sorted(systems)})
    if workers.here or make_systems is None:
        make_systems = partial(dict, systems)
    where: dict[str, Any] = {"batch": batch, "workers": workers, "device": device}
    draw_missing(make_systems, list(systems), store, **where)
    scored = [metric for metric in metrics if not isinstance(metric, SetMetric | DiversityMetric)]
    score_missing(scored, list(systems), store, scores, **where)
    groups = prompts_by_tag(rows)
    values = {name: prompt_values(name, scored, store, scores) for name in systems}
    if reference is None and suite.reference is not None and any(isinstance(m, SetMetric) for m in metrics):
        reference = suite.reference()
    real = {
        metric.name: set_features(metric, reference, batch=batch)
        for metric in metrics
        if isinstance(metric, SetMetric) and reference is not None
    }
    figures: dict[str, Any] = {}
    for name in systems:
        figures[name] = {
            "pictures": len(store.jobs),
            "failed": len(store.failed(name)),
            **(means := metric_figures(values[name], groups)),
            "mean_over_tags": mean_over_tags(means),
            "sets": _set_figures(name, metrics, store, real, batch),
        }
        if BASE in systems and name != BASE:
            figures[name]["differences_to_base"] = metric_figures(
                metric_differences(values[name], values[BASE]), groups
            )
        _save_samples(folder / f"samples-{name}.png", name, suite, store, values[name])
        if suite.name in BENCHMARKS:
            results = {
                metric.model_id: scorer_results(metric, name, store, scores)
                for metric in scored
                if not isinstance(metric, PictureMetric) and metric.name == suite.name
            }
            write_official(suite, name, store, results, folder / "official")
            for found in results.values():
                figures[name]["as_published"] = published_figures(suite, rows, found)
        if name in official:
            figures[name]["official"] = official_figures(suite, rows, official[name], images_per_prompt=count)
    whole = prompts_per_tag is None and count == suite.images_per_prompt
    report = {
        "systems": figures,
        "suite": {
            "name": suite.name,
            "benchmark": suite.benchmark,
            "sha256": suite.sha256,
            "prompts": len(rows),
            "images_per_prompt": count,
            "tags": {tag: len(at) for tag, at in groups.items()},
            "meanings": dict(suite.meanings),
        },
        "comparable_with_published": [
            name for name in sorted(official) if whole and not figures[name]["official"]["missing"]
        ],
        "note": NOT_COMPARABLE,
        "metrics": {metric.name: metric.model_id for metric in metrics},
        "checker": {key: one for metric in metrics for key, one in getattr(metric, "figures", {}).items()},
        "settings": made_with,
        "seconds_per_image": {name: round(store.seconds_per_image(name), 4) for name in systems},
        **provenance(command),
    }
    write_whole(folder / "prompts.jsonl", "".join(_prompt_lines(rows, values)))
    write_whole(folder / "report.md", report_tables(report, markdown=True))
    write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def check_metrics(
    metrics: Sequence[Metric | SuiteScorer],
    suite: PromptSuite,
    images_per_prompt: int,
    *,
    has_reference: bool,
) -> None:
    """Check that the metrics can score pictures of this suite.

    Raises:
        ConfigError: `images_per_prompt` is below 1.
        MetricError: a metric lacks what it needs.
    """
    if images_per_prompt < 1:
        raise ConfigError(f"images_per_prompt: got {images_per_prompt}, expected at least 1")
    for metric in metrics:
        if not isinstance(metric, Metric) and metric.name != suite.name:
            raise MetricError(
                f"metric {metric.name}: scores its own benchmark's pictures only, not {suite.name}'s"
            )
        if not isinstance(metric, Metric) and not any("score" in metric.failed(row) for row in suite.prompts):
            raise MetricError(f"metric {metric.name}: scores none of this suite's prompts: leave it out")
        if isinstance(metric, SetMetric) and not has_reference and suite.reference is None:
            raise MetricError(
                f"metric {metric.name}: no pictures to compare with, expected a folder of them (--reference)"
            )
        if isinstance(metric, DiversityMetric) and images_per_prompt < 2:
            raise MetricError(
                f"metric {metric.name}: one picture of each prompt, expected at least two (--images-per-prompt)"
            )


def _check_official(
    official: Mapping[str, Path], suite: PromptSuite, systems: Mapping[str, System], out: Path
) -> None:
    for name, path in official.items():
        if suite.name not in BENCHMARKS or name not in systems:
            raise ConfigError(
                f"official scores of {name!r}: expected a published benchmark as the suite, and one of the systems "
                f"{', '.join(systems)}"
            )
        if path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"official scores {path}: lies in {out}, where this library writes scores of its own; expected a "
                "file that the published scorer wrote, elsewhere"
            )


def _jobs(row: SuitePrompt, index: int, count: int, seed: int) -> list[PictureJob]:
    metadata = {"id": row.id, "tags": ", ".join(row.tags) or None}
    return [
        PictureJob(name=f"{index:05d}-{number}", prompt=row.prompt, seed=one, metadata=metadata)
        for number, one in enumerate(row.seeds(count, seed))
    ]


def _set_figures(
    system: str,
    metrics: Sequence[Metric | SuiteScorer],
    store: PictureStore,
    real: Mapping[str, NDArray[np.float32]],
    batch: int,
) -> dict[str, float]:
    """Return the set metrics over all pictures except failed ones, which the report counts separately.

    `real`: features of the reference pictures by the metric's name.
    """
    figures: dict[str, float] = {}
    for metric in metrics:
        if isinstance(metric, DiversityMetric):
            drawn = (store.drawn(system, jobs) for _, jobs in store.prompts)
            several = [metric.diversity(np.stack(pictures)) for pictures in drawn if len(pictures) > 1]
            figures |= {metric.name: float(np.mean(several))} if several else {}
        elif isinstance(metric, SetMetric):
            pictures = (one for job in store.jobs for one in store.drawn(system, [job]))
            features = set_features(metric, pictures, batch=batch)
            figures |= metric.compare(real[metric.name], features)
    return figures


def _prompt_lines(rows: Sequence[SuitePrompt], values: Mapping[str, Values]) -> Iterator[str]:
    for system, figures in values.items():
        for index, row in enumerate(rows):
            found = {name: float(one[index]) for name, one in figures.items() if not np.isnan(one[index])}
            line = {"system": system, "id": row.id, "prompt": row.prompt, "tags": row.tags, "values": found}
            yield json.dumps(line) + "\n"


def _save_samples(
    path: Path,
    system: str,
    suite: PromptSuite,
    store: PictureStore,
    values: Values,
) -> None:
    """Save the first pictures of some prompts of every tag, with the scorer's verdict if it is clear."""
    verdicts = {1.0: "RIGHT: ", 0.0: "WRONG: "}
    scores = values.get(suite.score_name, np.full(len(store.rows), np.nan))
    combinations = len({row.tags for row in store.rows})
    first = {row.id for row in suite.first(max(1, _SAMPLES // combinations))}
    shown = [
        (verdicts.get(float(score), "") + row.prompt, image)
        for (row, some), score in zip(store.prompts, scores, strict=True)
        if row.id in first and (image := store.read(system, some[0])) is not None
    ][:_SAMPLES]
    if shown:
        save_grid(
            np.stack([image for _, image in shown]), [label for label, _ in shown], path, columns=_COLUMNS
        )
