"""The verbs `llmdiff generate`, `llmdiff compare` and `llmdiff batch`, and their block of options."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmdiff.checks import bounds
from llmdiff.cli.blocks import takes
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import (
    Guidance,
    Height,
    Negative,
    Number,
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

if TYPE_CHECKING:
    from llmdiff.drawing.draw import DrawingSettings

Draw = Callable[["DrawingSettings", Models, Path], Iterator[Path]]


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)]
Prompts = Annotated[
    Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line.", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.png", help="Where to write [PROMPT-SEED.png].")
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Folder for 000000.png, ... [PROMPTS-pictures]."),
]
Seed = Annotated[int | None, number("--seed", bounds.SEED, help="Seed of the first picture [random].")]
BatchSeed = Annotated[int, number("--seed", bounds.SEED, help="Seed of every prompt's first picture.")]
BatchNumber = Annotated[int, number("--number", bounds.NUMBER, help="Number of pictures of every prompt.")]
SaveSize = Annotated[
    int | None,
    number("--save-size", bounds.SIDE_PX, help="Enlarge smaller pictures to this shorter side when saving."),
]
Enlarging = Annotated[
    Literal["lanczos", "nearest"], typer.Option("--save-filter", help="How --save-size enlarges.")
]


def _drawing(
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    save_size: SaveSize = None,
    save_filter: Enlarging = "lanczos",
) -> dict[str, Any]:
    from llmdiff.drawing.saving import SaveSize

    return {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "height_px": height,
        "width_px": width,
        "save_size": None if save_size is None else SaveSize(save_size, save_filter),
    }


_takes_drawing = takes(_drawing, "drawing")


def _verb(draw: Draw, pictures: int, suffix: str = "") -> Callable[..., None]:
    """Return a verb that parses the options, calls `draw` and prints its paths; `pictures` is the default number."""

    @takes_models()
    @_takes_drawing
    def verb(
        prompt: Prompt,
        out: Out = None,
        seed: Seed = None,
        number: Number = pictures,
        verbose: Verbose = False,
        *,
        drawing: dict[str, Any],
        models: Models,
    ) -> None:
        set_up(verbose)
        from llmdiff.drawing.draw import DrawingSettings, new_seed
        from llmdiff.drawing.saving import picture_name

        first = new_seed() if seed is None else seed
        settings = DrawingSettings(prompt=prompt, seed=first, number=number, **drawing)
        for path in draw(settings, models, out or picture_name(prompt, first, suffix)):
            typer.echo(path)

    verb.__doc__ = draw.__doc__
    return verb


def _generate(settings: "DrawingSettings", models: Models, out: Path) -> Iterator[Path]:
    """Draw a prompt with the LLM in control. More than one picture: NAME-0.png, NAME-1.png and so on."""
    from llmdiff.drawing import draw as drawing

    yield from drawing.generate(settings, models, out)


def _compare(settings: "DrawingSettings", models: Models, out: Path) -> Iterator[Path]:
    """Draw a prompt with the base text encoder and with the LLM, side by side, from the same seeds."""
    from llmdiff.drawing import draw as drawing

    yield drawing.compare(settings, models, out)


generate = _verb(_generate, pictures=1)
compare = _verb(_compare, pictures=4, suffix="compare")


@takes_models()
@_takes_drawing
def batch(
    prompts: Prompts,
    out: OutFolder = None,
    seed: BatchSeed = 0,
    number: BatchNumber = 1,
    workers: Processes = 1,
    ray: Ray = False,
    verbose: Verbose = False,
    *,
    drawing: dict[str, Any],
    models: Models,
) -> None:
    """Draw every prompt of a file. Run again to draw only the missing pictures."""
    set_up(verbose)
    from llmdiff.drawing.batch import draw_prompts, read_prompts
    from llmdiff.drawing.draw import DrawingSettings

    texts = read_prompts(prompts)
    settings = DrawingSettings(prompt=texts[0], seed=seed, number=number, **drawing)
    folder = out or Path(f"{prompts.stem}-pictures")
    for path in draw_prompts(texts, settings, models, folder, workers=Workers(count=workers, ray=ray)):
        typer.echo(path)
