"""The command `llmdiff`: one thin verb for each thing to do; the work is done elsewhere."""

import logging
import os
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmdiff import __version__
from llmdiff.errors import LLMDiffError

# Modules that import torch are imported inside the verbs: `llmdiff --help` answers at once.


class _Verbs(TyperGroup):
    """Prints our own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMDiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


# Without rich: its import would take longer than all the rest of `llmdiff --help`.
app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline.",
)


class Suite(StrEnum):
    """The suites of prompts that `evaluate` knows."""

    scenes = "scenes"


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to write.", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the first picture [random].")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option("--guidance-scale", help="Classifier-free guidance.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What not to draw.")]
Number = Annotated[int, typer.Option("--number", min=1, help="Pictures to draw, from seeds in a row.")]
Height = Annotated[int | None, typer.Option("--height", help="Pixels [the pipeline's own].")]
Width = Annotated[int | None, typer.Option("--width", help="Pixels [the pipeline's own].")]
Scale = Annotated[
    float, typer.Option("--scale", min=0.0, max=1.0, help="From 0, the base text encoder, to 1, the LLM.")
]
Adapter = Annotated[str, typer.Option("--adapter", help="A trained adapter: name, folder or Hub id.")]
Llm = Annotated[str | None, typer.Option("--llm", help="Name, folder, GGUF or Hub id [the adapter's own].")]
Pipeline = Annotated[str | None, typer.Option("--pipeline", help="Folder or Hub id [the adapter's own].")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps [an accelerator, else cpu].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the libraries have to say, too.")]


@app.command()
def generate(
    prompt: Prompt,
    out: Out,
    seed: Seed = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 4.0,
    negative_prompt: Negative = None,
    number: Number = 1,
    height: Height = None,
    width: Width = None,
    scale: Scale = 1.0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    pipeline: Pipeline = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Draw a prompt with the LLM in control. More than one picture: NAME-0.png, NAME-1.png and so on."""
    _set_up(verbose)
    from llmdiff import drawing

    settings = drawing.DrawingSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=drawing.new_seed() if seed is None else seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    models = drawing.Models(adapter=adapter, llm=llm, pipeline=pipeline, scale=scale, device=device)
    for path in drawing.generate(settings, models, out):
        typer.echo(path)


@app.command()
def compare(
    prompt: Prompt,
    out: Out,
    seed: Seed = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 4.0,
    negative_prompt: Negative = None,
    number: Number = 4,
    height: Height = None,
    width: Width = None,
    scale: Scale = 1.0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    pipeline: Pipeline = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Draw a prompt with the base text encoder and with the LLM, side by side, from the same seeds."""
    _set_up(verbose)
    from llmdiff import drawing

    settings = drawing.DrawingSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=drawing.new_seed() if seed is None else seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    models = drawing.Models(adapter=adapter, llm=llm, pipeline=pipeline, scale=scale, device=device)
    typer.echo(drawing.compare(settings, models, out))


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the report goes.")],
    suite: Annotated[Suite, typer.Option("--suite", help="The suite of prompts.")] = Suite.scenes,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Prompts of every split.")] = 100,
    steps: Steps = 20,
    guidance_scale: Guidance = 4.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the suite.")] = 0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Measure how often the pictures show what the prompts say: base text encoder against LLM."""
    _set_up(verbose)
    from llmdiff import drawing
    from llmdiff.evaluation.report import evaluate_scenes, writable_folder
    from llmdiff.evaluation.tables import report_tables

    writable_folder(out)
    place = drawing.usable_device(device)
    controller = drawing.load_controller(drawing.Models(adapter=adapter, llm=llm), device=place)
    report = evaluate_scenes(
        controller, prompts, out, steps=steps, guidance_scale=guidance_scale, seed=seed, device=place
    )
    typer.echo(report_tables(report))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def _set_up(verbose: bool) -> None:
    """Decides what is heard: our own messages always, the libraries' only when asked for."""
    log = logging.getLogger("llmdiff")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
    log.setLevel(logging.INFO)
    if verbose:
        return
    # These are read when the libraries are imported, which is later.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"llmdiff\b")
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """Runs the command line."""
    app(prog_name="llmdiff")


if __name__ == "__main__":
    main()
