"""The verb `llmdiff encode`."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Negative, Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models


@takes_models("adapter", "llm", "weighted", "device", "dtype", "trust_remote_code")
def encode(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder, one file a prompt [PROMPTS-encodings]."),
    ] = None,
    negative_prompt: Negative = None,
    batch: Annotated[int, number("--batch", bounds.COUNT, help="Prompts encoded together.")] = 16,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Encode every prompt of a file, and the negative one, to draw them later without the LLM in memory.

    Draw with --encodings FOLDER. Run again to encode only the missing prompts.
    """
    set_up(verbose)
    from llmdiff.drawing.encode import encode_prompts
    from llmdiff.files import prompt_lines

    folder = out or Path(f"{prompts.stem}-encodings")
    for path in encode_prompts(prompt_lines(prompts), negative_prompt or "", models, folder, batch=batch):
        typer.echo(path)
