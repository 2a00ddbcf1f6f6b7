"""The verbs `llmdiff generate` and `llmdiff compare`, which have the same options."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import (
    Guidance,
    Height,
    Negative,
    Number,
    Steps,
    Verbose,
    Width,
    number,
)
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models

if TYPE_CHECKING:
    from llmdiff.drawing.draw import DrawingSettings

Draw = Callable[["DrawingSettings", Models, Path], Iterator[Path]]

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to write.", show_default=False)]
Seed = Annotated[int | None, number("--seed", bounds.SEED, help="Seed of the first picture [random].")]


def _verb(draw: Draw, pictures: int) -> Callable[..., None]:
    """Return a verb that parses the options, calls `draw` and prints its paths; `pictures` is the default number."""

    def verb(
        prompt: Prompt,
        out: Out,
        seed: Seed = None,
        steps: Steps = 20,
        guidance_scale: Guidance = 3.0,
        negative_prompt: Negative = None,
        number: Number = pictures,
        height: Height = None,
        width: Width = None,
        verbose: Verbose = False,
        *,
        models: Models,
    ) -> None:
        set_up(verbose)
        from llmdiff.drawing import draw as drawing

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
        for path in draw(settings, models, out):
            typer.echo(path)

    verb.__doc__ = draw.__doc__
    return takes_models()(verb)


def _generate(settings: "DrawingSettings", models: Models, out: Path) -> Iterator[Path]:
    """Draw a prompt with the LLM in control. More than one picture: NAME-0.png, NAME-1.png and so on."""
    from llmdiff.drawing import draw as drawing

    yield from drawing.generate(settings, models, out)


def _compare(settings: "DrawingSettings", models: Models, out: Path) -> Iterator[Path]:
    """Draw a prompt with the base text encoder and with the LLM, side by side, from the same seeds."""
    from llmdiff.drawing import draw as drawing

    yield drawing.compare(settings, models, out)


generate = _verb(_generate, pictures=1)
compare = _verb(_compare, pictures=4)
