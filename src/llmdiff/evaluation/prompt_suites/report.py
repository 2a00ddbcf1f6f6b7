"""An evaluation on a suite of prompts: systems draw, metrics score, figures, samples and official files are written."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmdiff.drawing.grids import save_grid
from llmdiff.drawing.pictures import open_picture
from llmdiff.environment import command_line, versions
from llmdiff.errors import ConfigError, InputFileError, MetricError
from llmdiff.evaluation.drawn import DrawnPictures, PictureJob, Shard, draw_missing
from llmdiff.evaluation.metrics.kinds import DiversityMetric, Metric, PictureMetric, Pictures, SetMetric
from llmdiff.evaluation.metrics.tally import metric_differences, metric_figures
from llmdiff.evaluation.prompt_suites.benchmarks import BENCHMARKS
from llmdiff.evaluation.prompt_suites.official import official_figures, write_official
from llmdiff.evaluation.prompt_suites.scores import ScoreBook, score_missing
from llmdiff.evaluation.prompt_suites.suite import PromptSuite, SuitePrompt, SuiteScorer
from llmdiff.evaluation.prompt_suites.tables import NOT_COMPARABLE, suite_tables
from llmdiff.evaluation.systems import BASE, System
from llmdiff.files import writable_folder, write_whole

_SAMPLES, _COLUMNS = 24, 6
Values = dict[str, NDArray[np.float64]]


def evaluate_suite(
    systems: Mapping[str, System],
    suite: PromptSuite,
    out: str | Path,
    *,
    prompts_per_tag: int | None = None,
    images_per_prompt: int | None = None,
    metrics: Sequence[Metric | SuiteScorer] = (),
    reference: Pictures | None = None,
    official_scores: Mapping[str, Path] | None = None,
    shard: Shard | None = None,
    batch: int = 16,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """The report of these systems over a suite, with prompts and seeds the same for all; empty for one of many shards.

    A picture or score that `out` has is not made again. A picture that could not be drawn counts as a metric's
    `failed_score`. Written to `out`: drawn/SYSTEM/*.png, scores/, samples-SYSTEM.png, report.json and report.md;
    for a published benchmark also official/SYSTEM, as its own scorer reads pictures.

    Raises:
        OutputError: `out` cannot be written; nothing is drawn then.
        ConfigError: `out` has pictures drawn otherwise, no systems, or official scores that do not belong here.
        MetricError: a metric lacks what it needs.
        LLMDiffError: a system could draw nothing.
    """
    count = suite.images_per_prompt if images_per_prompt is None else images_per_prompt
    rows = suite.prompts if prompts_per_tag is None else suite.first(prompts_per_tag)
    official = dict(official_scores or {})
    _check(systems, suite, count, metrics, reference, official, Path(out))
    store, book = DrawnPictures(writable_folder(out)), ScoreBook(Path(out))
    made_with = {**(settings or {}), "suite": suite.name, "suite_sha256": suite.sha256, "suite_seed": seed}
    jobs = [_jobs(row, index, count, seed) for index, row in enumerate(rows)]
    store.check_settings(made_with | {"prompts_per_tag": prompts_per_tag, "systems": sorted(systems)})
    shard = shard or Shard()
    draw_missing(systems, jobs, store, batch=batch, shard=shard)
    scored = [metric for metric in metrics if not isinstance(metric, SetMetric | DiversityMetric)]
    for metric in scored:
        score_missing(metric, list(systems), rows, jobs, store, book, shard=shard, batch=batch)
    if shard.count > 1:
        return {}
    groups = {tag: [i for i, row in enumerate(rows) if tag in row.tags] for row in rows for tag in row.tags}
    values = {name: _values(name, scored, jobs, book) for name in systems}
    figures: dict[str, Any] = {}
    for name in systems:
        found = metric_figures(values[name], groups)
        figures[name] = {
            "pictures": sum(map(len, jobs)),
            "failed": sum(len(store.failed(name, row)) for row in jobs),
            "metrics": found["overall"],
            "metrics_by_tag": found["groups"],
            "mean_over_tags": {
                key: float(np.mean([one[key]["mean"] for one in found["groups"].values() if key in one]))
                for key in (found["overall"] if groups else ())
                if any(key in one for one in found["groups"].values())
            },
            "sets": _of_sets(name, metrics, jobs, store, reference),
        }
        if BASE in systems and name != BASE:
            figures[name]["metric_differences_to_base"] = metric_differences(values[name], values[BASE])
        _save_samples(Path(out) / f"samples-{name}.png", name, rows, jobs, store)
        if suite.name in BENCHMARKS:
            write_official(suite, name, rows, jobs, store, book, scored, Path(out) / "official")
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
        },
        "comparable_with_published": sorted(official) if whole and suite.benchmark else [],
        "note": NOT_COMPARABLE,
        "metrics": {metric.name: metric.model_id for metric in metrics},
        "settings": made_with,
        "seconds_per_image": {
            name: round(store.seconds_per_image(name, [job for row in jobs for job in row]), 4)
            for name in systems
        },
        "versions": versions(),
        "command": command or command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_whole(Path(out) / "report.md", suite_tables(report, markdown=True))
    write_whole(Path(out) / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def read_reference(folder: Path, size_px: int = 256) -> Pictures:
    """The pictures of a folder, cut to squares and resized: what set metrics compare with. Shapes: (N, size, size, 3).

    Raises:
        ConfigError: it has less than two pictures, or one that cannot be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if len(paths) < 2:
        raise ConfigError(f"reference {folder}: has {len(paths)} pictures, expected at least two")
    pictures = []
    for path in paths:
        try:
            image = open_picture(path)
        except InputFileError as error:
            raise ConfigError(f"reference {path}: cannot be read as a picture ({error})") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        pictures.append(np.asarray(square.resize((size_px, size_px), Image.Resampling.BICUBIC)))
    return np.stack(pictures)


def _check(
    systems: Mapping[str, System],
    suite: PromptSuite,
    count: int,
    metrics: Sequence[Metric | SuiteScorer],
    reference: Pictures | None,
    official: Mapping[str, Path],
    out: Path,
) -> None:
    if not systems or count < 1:
        raise ConfigError(
            f"systems, images_per_prompt: got {len(systems)} and {count}, expected at least 1 of each"
        )
    for metric in metrics:
        if metric.name in BENCHMARKS and metric.name != suite.name:
            raise MetricError(
                f"metric {metric.name}: scores its own benchmark's pictures only, not {suite.name}'s"
            )
        tags = getattr(metric, "tags", None)
        if tags is not None and not any(set(tags) & set(row.tags) for row in suite.prompts):
            raise MetricError(
                f"metric {metric.name}: scores prompts of {', '.join(tags)}, and the suite has none of them: leave it "
                "out"
            )
        if isinstance(metric, SetMetric) and reference is None:
            raise MetricError(
                f"metric {metric.name}: no pictures to compare with, expected a folder of them (--reference)"
            )
        if isinstance(metric, DiversityMetric) and count < 2:
            raise MetricError(
                f"metric {metric.name}: one picture of each prompt, expected at least two (--images-per-prompt)"
            )
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
    facts = {"id": row.id, "tags": ", ".join(row.tags) or None}
    return [
        PictureJob(name=f"{index:05d}-{number}", prompt=row.prompt, seed=one, facts=facts)
        for number, one in enumerate(row.seeds(count, seed))
    ]


def _values(
    system: str,
    metrics: Sequence[PictureMetric | SuiteScorer],
    jobs: Sequence[Sequence[PictureJob]],
    book: ScoreBook,
) -> Values:
    """Figures of every prompt: the mean of its pictures, of which failed ones count as a metric's failed score."""
    values: Values = {}
    for metric in metrics:
        found = book.read(metric.name, metric.model_id, system)
        worst = float(getattr(metric, "failed_score", 0.0))
        for name in {name: None for one in found.values() for name in one["values"]}:
            everywhere = all(name in one["values"] for one in found.values())
            rows = [
                [found[job.name]["values"].get(name) if job.name in found else worst for job in row]
                for row in jobs
            ]
            if not everywhere:
                # A part that only some prompts ask for: a failed picture fails it where the prompt's others have it.
                asked = [
                    any(name in found[job.name]["values"] for job in row if job.name in found) for row in jobs
                ]
                rows = [row if ask else [] for row, ask in zip(rows, asked, strict=True)]
            values[name] = np.array([np.mean(row) if row else np.nan for row in rows], dtype=np.float64)
    return values


def _of_sets(
    system: str,
    metrics: Sequence[Metric | SuiteScorer],
    jobs: Sequence[Sequence[PictureJob]],
    store: DrawnPictures,
    reference: Pictures | None,
) -> dict[str, float]:
    """Figures of all pictures together; those that failed are not among them, which is why a report counts them."""
    figures: dict[str, float] = {}
    drawn = [[store.read(system, job) for job in row] for row in jobs]
    there = [np.stack(found) for row in drawn if (found := [one for one in row if one is not None])]
    for metric in metrics:
        if isinstance(metric, SetMetric) and reference is not None:
            features = np.concatenate([metric.features(row) for row in there])
            figures |= metric.compare(metric.features(reference), features)
        elif isinstance(metric, DiversityMetric):
            several = [metric.diversity(row) for row in there if len(row) > 1]
            figures |= {metric.name: float(np.mean(several))} if several else {}
    return figures


def _save_samples(
    path: Path,
    system: str,
    rows: Sequence[SuitePrompt],
    jobs: Sequence[Sequence[PictureJob]],
    store: DrawnPictures,
) -> None:
    shown = [
        (row.prompt, store.read(system, some[0])) for row, some in zip(rows[:_SAMPLES], jobs, strict=False)
    ]
    there = [(prompt, image) for prompt, image in shown if image is not None]
    if there:
        labels = [prompt for prompt, _ in there]
        save_grid(np.stack([image for _, image in there]), labels, path, columns=_COLUMNS)
