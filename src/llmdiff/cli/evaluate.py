"""The verb `llmdiff evaluate`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import (
    Checker,
    Guidance,
    MetricModels,
    MetricNames,
    Processes,
    Ray,
    Steps,
    Verbose,
    number,
)
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, load, models_digests, usable_device
from llmdiff.errors import ConfigError
from llmdiff.workers.jobs import Workers

_SCENES, _SCENES_PROMPTS = "scenes", 100

Many = list[str] | None


@takes_models()
def evaluate(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for the report [evaluation-SUITE].")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            metavar="NAME|FILE",
            help="scenes, a published benchmark (dpg-bench, geneval, geneval2, longtext-bench, oneig-bench, "
            "t2i-compbench, tiif-bench, unigenbench), or your prompts' file.",
        ),
    ] = _SCENES,
    suite_files: Annotated[
        Path | None, typer.Option("--suite-files", metavar="PATH", help="File or folder of its prompts.")
    ] = None,
    prompts: Annotated[
        int | None,
        number("--prompts", bounds.COUNT, help="Prompts of each split or tag [scenes: 100; else all]."),
    ] = None,
    images_per_prompt: Annotated[
        int | None,
        number("--images-per-prompt", bounds.NUMBER, help="Pictures a prompt [the suite's own number]."),
    ] = None,
    metric: MetricNames = None,
    metric_model: MetricModels = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FOLDER", help="Pictures for fid, kid and cmmd.")
    ] = None,
    official_scores: Annotated[
        Many,
        typer.Option(
            "--official-scores",
            metavar="SYSTEM=FILE",
            help="Results of the benchmark's own scorer, a file or a folder; may be repeated.",
        ),
    ] = None,
    workers: Processes = 1,
    ray: Ray = False,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of the suite.")] = 0,
    checker: Checker = "openmoji",
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Measure how well pictures match their prompts: base text encoder against LLM.

    Run again in the same folder to continue after an interruption.
    """
    set_up(verbose)
    from llmdiff.evaluation.metrics.reference import read_reference
    from llmdiff.evaluation.report import evaluate_suite
    from llmdiff.evaluation.suites.scenes import suite_of_pipeline
    from llmdiff.evaluation.systems import controller_systems, models_systems
    from llmdiff.evaluation.tables import report_tables
    from llmdiff.files import writable_folder

    place = usable_device(models.device)
    out = out or Path(f"evaluation-{Path(suite).stem}")
    # Validate all arguments before drawing, which takes minutes.
    if suite == _SCENES:
        chosen = _scenes(checker, place, suite_files, official_scores)
    else:
        chosen = _suite_parts(suite, suite_files, official_scores) | {"prompts_per_tag": prompts}
    pictures = None if reference is None else read_reference(reference)
    writable_folder(out)
    measured = [*chosen.pop("scorers", []), *_metrics(metric or [], metric_model or [], place)]
    chosen_workers = Workers(count=workers, ray=ray)
    # Other workers load the models themselves; this process takes only their digests.
    controller, pipe = load(replace(models, device=place if chosen_workers.here else "cpu"))
    if suite == _SCENES:
        base = controller.adapter.config.base_model_id
        chosen["suite"] = suite_of_pipeline(base, measured[0].checker, prompts or _SCENES_PROMPTS, seed)
    drawing: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale}
    report = evaluate_suite(
        controller_systems(controller, pipe, control=models.control, **drawing),
        out=out,
        images_per_prompt=images_per_prompt,
        metrics=measured,
        reference=pictures,
        workers=chosen_workers,
        make_systems=partial(models_systems, replace(models, device=place), **drawing),
        device=place,
        seed=seed,
        settings={
            **drawing,
            **{name: value for name, value in models.metadata().items() if value is not None},
            "scale": controller.scale if models.scale is None else models.scale,
            "llm": controller.llm.id,
            "base_model": models.pipeline or controller.adapter.config.base_model_id,
            **models_digests(controller, pipe),
        },
        **chosen,
    )
    typer.echo(report_tables(report))
    typer.echo(out / "report.md")


def _scenes(checker: str, device: str, files: Path | None, official: Many) -> dict[str, Any]:
    from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker

    for name, value in {"suite-files": files, "official-scores": official}.items():
        if value is not None:
            raise ConfigError(
                f"{name} is given, but the suite scenes has its own prompts and scorer: leave it out, or choose "
                "another --suite"
            )
    return {"scorers": [SceneScorer(load_checker(checker).to(device))]}


def _suite_parts(suite: str, files: Path | None, official: Many) -> dict[str, Any]:
    from llmdiff.evaluation.suites.benchmarks import read_suite

    pairs = [one.partition("=") for one in official or []]
    for name, _, path in pairs:
        if not Path(path).exists() or not path:
            raise ConfigError(
                f"official-scores: got {name}={path}, expected SYSTEM=FILE with an existing file or folder"
            )
        if [other for other, _, _ in pairs].count(name) > 1:
            raise ConfigError(f"official-scores: {name} is given twice, expected one for each system")
    return {
        "suite": read_suite(suite, files),
        "official_scores": {name: Path(path) for name, _, path in pairs},
    }


def _metrics(names: list[str], models: list[str], device: str) -> list[Any]:
    from llmdiff.evaluation.metrics.loading import load_metric, with_models
    from llmdiff.evaluation.suites.benchmarks import BENCHMARKS

    loaded = []
    for name, model in with_models(names, models):
        if name in BENCHMARKS:
            if model is None:
                raise ConfigError(f"metric {name}: no model, expected one for its scorer (--metric-model)")
            loaded.append(BENCHMARKS[name].scorer.from_pretrained(model, device=device))
        else:
            loaded.append(load_metric(name, model, device=device))
    return loaded
