"""The verb `llmdiff doctor`."""

import typer

from llmdiff.cli.output import set_up


def doctor() -> None:
    """Check this machine: versions, devices, caches, extras; exit with status 1 if drawing cannot work."""
    set_up(verbose=False)
    from llmdiff.cli.diagnosis import examine

    broken = 0
    for heading, findings in examine().items():
        typer.echo(heading)
        for finding in findings:
            typer.echo(f"  {'! ' if finding.broken else ''}{finding}")
            broken += finding.broken
    if broken:
        typer.echo(
            f"error: {broken} of these, marked with !, keep LLMDiff from working: repair them", err=True
        )
        raise typer.Exit(1)
    typer.echo("everything needed for drawing is installed")
