"""The verb `llmdiff init`."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli.options import Device, Verbose
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError


def init(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="Folder of pictures with captions.", show_default=False)
    ],
    base: Annotated[str, typer.Option("--base", help="Pipeline to control.")] = "openmoji",
    llm: Annotated[str, typer.Option("--llm", help="LLM that controls it.")] = "smollm2-135m",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="CONFIG.yaml", help="File to write [PICTURES.yaml].")
    ] = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Look at a folder of pictures and write a training configuration for it.

    Captions are in metadata.jsonl or metadata.csv, or in cat.txt beside cat.jpg.
    """
    check_extra("train", "pydantic", "yaml", "datasets")
    set_up(verbose)
    from llmdiff.drawing.models import usable_device
    from llmdiff.files import write_whole
    from llmdiff.training.first_config import first_config

    path = out or Path(f"{pictures.absolute().name}.yaml")
    if path.exists():
        raise ConfigError(f"out is {path}, which exists: delete it or pass another --out")
    name = path.stem
    text, report = first_config(
        pictures, base=base, llm=llm, out=Path("runs") / name, device=usable_device(device)
    )
    write_whole(path, f"# Train an adapter on {pictures}:\n#\n#   llmdiff train {path}\n\n{text}")
    typer.echo("\n".join(report))
    typer.echo(f"{path}\nnext: llmdiff train {path}")
