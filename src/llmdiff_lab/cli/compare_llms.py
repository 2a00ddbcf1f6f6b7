"""The verb `llmdiff-lab compare-llms`."""

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
    Preset,
    Prompts,
    Verbose,
    number,
)
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra


def compare_llms(
    out: BenchmarkOut,
    llms: Annotated[
        str, typer.Option("--llms", help="Names, folders, GGUF files or Hub ids, separated by commas.")
    ] = "smollm2-135m,gemma3-270m",
    system: Annotated[str, typer.Option("--system", help="Rival to train on each LLM.")] = "guided",
    seeds: Annotated[int, number("--seeds", Bounds(1, 1000), help="Number of trainings on every LLM.")] = 1,
    preset: Preset = "cpu",
    build: Build = None,
    begin: Begin = None,
    fluent: Fluent = None,
    text_steps: Annotated[
        int | None,
        number(
            "--text-steps", bounds.TRAINING_STEPS_OR_NONE, help="Steps from captions alone [the preset's]."
        ),
    ] = None,
    steps: Annotated[
        int | None, number("--steps", bounds.TRAINING_STEPS, help="Steps on pictures [the preset's].")
    ] = None,
    batch: Batch = None,
    captions: Captions = None,
    prompts: Prompts = 100,
    drawing_steps: DrawingSteps = 20,
    guidance_scale: Guidance = 3.0,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Train the same adapter on several LLMs and show accuracy by their size.

    Run again to resume. LLMs can be added later in the same folder.
    """
    set_up(verbose)
    check_extra("benchmark", "matplotlib", "resvg_py", "peft")
    import torch

    from llmdiff.drawing import models as loading
    from llmdiff.environment import command_line
    from llmdiff.files import writable_folder
    from llmdiff_lab.comparison.compare_llms import compare_llms as compare
    from llmdiff_lab.comparison.compare_llms import comparison_settings
    from llmdiff_lab.comparison.compare_page import comparison_tables, save_comparison
    from llmdiff_lab.comparison.prepare import prepare_build

    writable_folder(out)
    settings = comparison_settings(
        preset,
        system=system,
        seeds=seeds,
        text_steps=text_steps,
        steps=steps,
        batch=batch,
        captions=captions,
        prompts_per_split=prompts,
        drawing_steps=drawing_steps,
        guidance_scale=guidance_scale,
    )
    place = torch.device(loading.usable_device(device))
    names = [name.strip() for name in llms.split(",") if name.strip()]
    report = compare(
        prepare_build(preset, build, begin, place, fluent=fluent),
        out,
        names,
        settings,
        command=command_line(),
    )
    paths = save_comparison(report, out)
    typer.echo(comparison_tables(report), nl=False)
    typer.echo(paths[-1])
