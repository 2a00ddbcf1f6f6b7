"""The verb `llmdiff plan`."""

import json
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.options import Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.cli.train import Changes, Config
from llmdiff.environment import check_extra


def plan(
    config: Config,
    changes: Changes = None,
    processes: Annotated[int, number("--processes", bounds.COUNT, help="Number of GPUs.")] = 1,
    tokens: Annotated[int, number("--tokens", bounds.COUNT, help="Tokens of a caption, BOS included.")] = 32,
    samples: Annotated[
        int | None,
        number("--samples", bounds.SAMPLES, help="Samples in the store [the scenes, or a million]."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time a few training steps on this machine and extrapolate."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Estimate the cost of a training: parameters, memory, FLOPs, disk; with --measure, time.

    Without --measure no weights are loaded.
    """
    set_up(verbose)
    check_extra("train", "pydantic", "yaml", "datasets")
    from dataclasses import asdict, replace

    from llmdiff.training.config import load_config
    from llmdiff.training.measure import measure as time_steps
    from llmdiff.training.plan import make_plan

    settings = load_config(config, changes or [])
    found = make_plan(settings, processes=processes, tokens=tokens, samples=samples)
    if measure:
        found = replace(found, measured=time_steps(settings))
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else found.text())
