"""The verb `llmdiff-lab benchmark`."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.checks.bounds import Bounds
from llmdiff.cli.options import (
    Batch,
    Begin,
    BenchmarkOut,
    Build,
    Captions,
    Device,
    DrawingSteps,
    Fluent,
    Guidance,
    MetricModels,
    MetricNames,
    Preset,
    Processes,
    Prompts,
    Ray,
    Verbose,
    number,
)
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra
from llmdiff.workers.jobs import Workers


def benchmark(
    out: BenchmarkOut,
    rivals: Annotated[
        str | None, typer.Option("--rivals", help="Rivals, separated by commas [all that can run].")
    ] = None,
    systems: Annotated[
        Path | None,
        typer.Option(
            "--systems",
            help="YAML file of rivals with other steps or scales: NAME: {rival: , steps: , scale: }.",
        ),
    ] = None,
    seeds: Annotated[int, number("--seeds", Bounds(1, 1000), help="Number of trainings of every rival.")] = 3,
    preset: Preset = "cpu",
    build: Build = None,
    begin: Begin = None,
    fluent: Fluent = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="LLM: name, folder or Hub id [the preset's].")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder-only: folder or Hub id [minilm, if installed].")
    ] = None,
    t5: Annotated[
        str | None, typer.Option("--t5", help="Model of the T5 family: folder or Hub id [none].")
    ] = None,
    steps: Annotated[
        int | None, number("--steps", bounds.TRAINING_STEPS, help="Steps on pictures [the preset's].")
    ] = None,
    text_steps: Annotated[
        int,
        number(
            "--text-steps", bounds.TRAINING_STEPS_OR_NONE, help="Steps from captions alone, before --steps."
        ),
    ] = 0,
    batch: Batch = None,
    captions: Captions = None,
    learning_rate: Annotated[
        list[float] | None,
        number(
            "--learning-rate",
            bounds.LEARNING_RATE,
            help="May be repeated; every rival tries all [the preset's].",
        ),
    ] = None,
    search_steps: Annotated[
        int,
        number(
            "--search-steps",
            bounds.TRAINING_STEPS_OR_NONE,
            help="Steps to try each learning rate.",
        ),
    ] = 0,
    prompts: Prompts = 100,
    drawing_steps: DrawingSteps = 20,
    guidance_scale: Guidance = 3.0,
    try_guidance: Annotated[
        list[float] | None,
        number(
            "--try-guidance",
            bounds.GUIDANCE,
            help="May be repeated; every system uses its best on validation prompts.",
        ),
    ] = None,
    validation_prompts: Annotated[
        int, number("--validation-prompts", bounds.COUNT, help="Prompts a split for --try-guidance.")
    ] = 20,
    metric: MetricNames = None,
    metric_model: MetricModels = None,
    workers: Processes = 1,
    ray: Ray = False,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Train and evaluate all rivals under equal conditions; write report.html and report.json.

    Run again to resume after an interruption.
    """
    set_up(verbose)
    check_extra("benchmark", "matplotlib", "resvg_py", "peft")
    from llmdiff.drawing import models as loading
    from llmdiff.environment import command_line
    from llmdiff.evaluation.metrics.loading import with_models
    from llmdiff.files import writable_folder
    from llmdiff_lab.comparison.fill import Recipe, fill
    from llmdiff_lab.comparison.prepare import choose_rivals
    from llmdiff_lab.comparison.systems import read_variants
    from llmdiff_lab.comparison.tables import ranking

    # Validate before the base is built or its scenes are drawn.
    writable_folder(out)
    names = [name.strip() for name in (rivals or "").split(",") if name.strip()]
    recipe = Recipe(
        preset=preset,
        build=build,
        begin=begin,
        fluent=fluent,
        device=loading.usable_device(device),
        out=out,
        choice=choose_rivals(
            names, encoder=encoder, t5=t5, variants=None if systems is None else read_variants(systems)
        ),
        metrics=tuple(with_models(metric or [], metric_model or [])),
        settings={
            "seeds": seeds,
            "llm": llm,
            "steps": steps,
            "text_steps": text_steps,
            "batch": batch,
            "captions": captions,
            "learning_rates": tuple(learning_rate or ()),
            "search_steps": search_steps,
            "prompts_per_split": prompts,
            "drawing_steps": drawing_steps,
            "guidance_scale": guidance_scale,
            "guidance_scales": tuple(try_guidance or ()),
            "validation_prompts": validation_prompts,
        },
    )
    plan = recipe.benchmark()
    fill(recipe, plan, Workers(count=workers, ray=ray))
    typer.echo(ranking(plan.report(command=command_line(), processes=workers)))
    typer.echo(out / "report.html")
