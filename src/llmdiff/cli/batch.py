"""The verb `llmdiff batch`."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import (
    Guidance,
    Height,
    Negative,
    Processes,
    Ray,
    Steps,
    Verbose,
    Width,
    number,
)
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models
from llmdiff.workers.jobs import Workers


@takes_models()
def batch(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where pictures go: 000000.png ...")],
    seed: Annotated[int, number("--seed", bounds.SEED, help="Of every prompt's first picture.")] = 0,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    number: Annotated[int, number("--number", bounds.NUMBER, help="Pictures of every prompt.")] = 1,
    height: Height = None,
    width: Width = None,
    workers: Processes = 1,
    ray: Ray = False,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Draw every prompt of a file. Run again to draw only the missing pictures."""
    set_up(verbose)
    from llmdiff.drawing.batch import draw_prompts, read_prompts
    from llmdiff.drawing.draw import DrawingSettings

    texts = read_prompts(prompts)
    settings = DrawingSettings(
        prompt=texts[0],
        negative_prompt=negative_prompt,
        seed=seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    drawn = draw_prompts(texts, settings, models, out, workers=Workers(count=workers, ray=ray))
    for path in drawn:
        typer.echo(path)
