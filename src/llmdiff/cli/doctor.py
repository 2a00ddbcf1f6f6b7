"""The verb `llmdiff doctor`: what this machine has, and what is missing; the work is done elsewhere."""

import typer

from llmdiff.cli.output import set_up


def doctor() -> None:
    """Say what this machine has: versions, devices, caches, extras; exit status 1 if drawing cannot work."""
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
    typer.echo("all that drawing needs is here")
