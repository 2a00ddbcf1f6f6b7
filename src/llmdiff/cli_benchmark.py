"""The verb `llmdiff benchmark`; the work is done elsewhere."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli_options import Device, Guidance, Verbose
from llmdiff.cli_output import set_up
from llmdiff.extras import check_extra


def benchmark(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where everything goes.")],
    rivals: Annotated[
        str | None, typer.Option("--rivals", help="Which, separated by commas [all that can be run].")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of every rival.")] = 3,
    preset: Annotated[str, typer.Option("--preset", help="The embedded default's: cpu, gpu, test.")] = "cpu",
    build: Annotated[
        Path | None, typer.Option("--build", help="Folder of its build [in the cache folder].")
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", help='Base and checker: "shipped" or a folder [shipped, if of the preset].'),
    ] = None,
    llm: Annotated[str | None, typer.Option("--llm", help="Name, folder or Hub id [the preset's].")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder-only: folder or Hub id [minilm, if installed].")
    ] = None,
    t5: Annotated[str | None, typer.Option("--t5", help="Of the T5 family: folder or Hub id [none].")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of training [the preset's].")] = None,
    text_steps: Annotated[
        int, typer.Option("--text-steps", min=0, help="Steps before these, from text where that can be.")
    ] = 0,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Captions a step [the preset's].")
    ] = None,
    captions: Annotated[
        int | None, typer.Option("--captions", min=1, help="Of training [the preset's].")
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option("--learning-rate", help="May be repeated: every rival tries all [the preset's]."),
    ] = None,
    search_steps: Annotated[
        int, typer.Option("--search-steps", min=0, help="Steps for each learning rate that is tried.")
    ] = 0,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Prompts of every split.")] = 100,
    drawing_steps: Annotated[int, typer.Option("--drawing-steps", min=1, help="Denoising steps.")] = 20,
    guidance_scale: Guidance = 3.0,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Train every way to condition alike, measure all, write report.html and report.json.

    Run again, it goes on where it was: nothing that is done is done twice, whenever it was killed.
    """
    set_up(verbose)
    check_extra("benchmark", "matplotlib", "resvg_py", "peft")
    import torch

    from llmdiff import loading
    from llmdiff.benchmark.prepare import choose_rivals, prepare_benchmark, prepare_build
    from llmdiff.benchmark.summary import ranking
    from llmdiff.evaluation.report import writable_folder

    # Whatever can be refused is refused before the base is made or its scenes are drawn.
    writable_folder(out)
    names = [name.strip() for name in (rivals or "").split(",") if name.strip()]
    choice = choose_rivals(names, encoder=encoder, t5=t5)
    place = torch.device(loading.usable_device(device))
    plan = prepare_benchmark(
        prepare_build(preset, build, begin, place),
        out,
        choice,
        seeds=seeds,
        llm=llm,
        steps=steps,
        text_steps=text_steps,
        batch=batch,
        captions=captions,
        learning_rates=learning_rate or (),
        search_steps=search_steps,
        prompts_per_split=prompts,
        drawing_steps=drawing_steps,
        guidance_scale=guidance_scale,
    )
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    typer.echo(ranking(plan.run(command=command)))
    typer.echo(out / "report.html")
