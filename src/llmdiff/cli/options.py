"""Options shared by several verbs, and the validation of numbers and texts on the command line."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llmdiff.checks import bounds
from llmdiff.checks.bounds import Bounds, short
from llmdiff.cli.help_text import HelpfulCommand
from llmdiff.errors import ConfigError

# The longest part of a path that every common file system supports.
_MAX_PART_BYTES = 255
_MAX_NAME = 4096
# Parameters that may be long and have several lines; all others are names and addresses.
_TEXTS = frozenset(
    {"prompt", "block_gains", "layer_scale", "negative_prompt", "template", "title", "changes"}
)


def number(name: str, allowed: Bounds, **described: Any) -> Any:
    """Return an option whose value is a number, or several numbers, in these bounds."""

    def check(value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and not allowed.holds(one):
                raise typer.BadParameter(f"{short(one)} is not {allowed}.")
        return value

    check.__dict__["allowed"] = allowed  # read by tests over all options
    return typer.Option(name, callback=check, **described)


class Verb(HelpfulCommand):
    """Base of all verbs: checks that texts are valid UTF-8 and that names are valid."""

    def invoke(self, ctx: Any) -> Any:
        """Check all text values, then run the verb.

        Raises:
            ConfigError: a value is not UTF-8, too long, or has control characters.
        """
        for name, value in ctx.params.items():
            for one in _texts_in(value):
                _check_text(name, one)
        return super().invoke(ctx)


def _texts_in(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str | Path):
            yield str(one)


def _check_text(name: str, value: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{name} is not valid UTF-8: set the terminal to UTF-8 and write it again")
    if "\0" in value:
        raise ConfigError(f"{name} has a NUL character ({short(value)}): leave it out")
    if name in _TEXTS:
        return
    if len(value) > _MAX_NAME or any(len(os.fsencode(part)) > _MAX_PART_BYTES for part in value.split("/")):
        raise ConfigError(f"{name} is {short(value)}: too long for a name, expected a shorter one")
    if any(letter < " " or letter == "\x7f" for letter in value):
        raise ConfigError(f"{name} is {short(value)}: expected a name without control characters")


Steps = Annotated[int, number("--steps", bounds.STEPS, help="Denoising steps.")]
Guidance = Annotated[
    float, number("--guidance-scale", bounds.GUIDANCE, help="How closely to follow the prompt.")
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="Negative prompt: what not to draw.")]
Number = Annotated[int, number("--number", bounds.NUMBER, help="Number of pictures, from consecutive seeds.")]
Height = Annotated[int | None, number("--height", bounds.SIDE_PX, help="Pixels [the pipeline's own].")]
Width = Annotated[int | None, number("--width", bounds.SIDE_PX, help="Pixels [the pipeline's own].")]
MetricNames = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="Additional metric; may be repeated."),
]
MetricModels = Annotated[
    list[str] | None,
    typer.Option(
        "--metric-model", metavar="PATH", help="Model of the metric, folder or Hub id: one for each --metric."
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps [an accelerator, else cpu].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the libraries' messages too.")]

Processes = Annotated[
    int,
    number(
        "--workers", bounds.PROCESSES, help="Processes that share the work [with --ray: on its machines]."
    ),
]
Ray = Annotated[bool, typer.Option("--ray", help="Run the workers on the Ray cluster of $RAY_ADDRESS.")]

# Options of the verbs that train and measure on the embedded default: benchmark, compare-llms.
BenchmarkOut = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for all files.")]
Preset = Annotated[str, typer.Option("--preset", help="Size of the models: cpu (the shipped ones) or gpu.")]
Checker = Annotated[str, typer.Option("--checker", help="Folder of the checker that reads the pictures.")]
Fluent = Annotated[
    Path | None,
    typer.Option("--fluent", help="Folder of the npm package @lobehub/fluent-emoji-3d, for style 3d."),
]
Build = Annotated[
    Path | None, typer.Option("--build", help="Folder of the preset's build [in the cache folder].")
]
Begin = Annotated[
    str | None,
    typer.Option("--from", help='Base and checker: "shipped" or a folder [shipped, if of the preset].'),
]
Batch = Annotated[int | None, number("--batch", bounds.COUNT, help="Captions in a step [the preset's].")]
Captions = Annotated[
    int | None,
    number("--captions", bounds.TRAINING_STEPS, help="Number of training captions [the preset's]."),
]
Prompts = Annotated[int, number("--prompts", bounds.COUNT, help="Prompts of every split.")]
DrawingSteps = Annotated[int, number("--drawing-steps", bounds.STEPS, help="Denoising steps.")]
