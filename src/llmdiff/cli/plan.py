"""The verb `llmdiff plan`; the work is done elsewhere."""

import json
from typing import Annotated

import typer

from llmdiff import bounds
from llmdiff.cli.options import number
from llmdiff.cli.output import set_up
from llmdiff.cli.train import Changes, Config
from llmdiff.environment import check_extra


def plan(
    config: Config,
    changes: Changes = None,
    processes: Annotated[int, number("--processes", bounds.COUNT, help="GPUs that train together.")] = 1,
    tokens: Annotated[int, number("--tokens", bounds.COUNT, help="Tokens of a caption, BOS included.")] = 32,
    samples: Annotated[
        int | None,
        number("--samples", bounds.SAMPLES, help="Samples that the store is for [the scenes, or a million]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    header: Annotated[bool, typer.Option("--header", help="Write the cost into the file's header.")] = False,
) -> None:
    """Say what a run will take: parameters, memory, samples/s and GPU-days, disk. No weights are loaded."""
    set_up(verbose=False)
    check_extra("train", "pydantic", "yaml", "datasets")
    from llmdiff.training.config import load_config
    from llmdiff.training.plan import Assumptions, make_plan
    from llmdiff.training.plan_text import plan_paragraph, plan_text, write_header

    settings = load_config(config, changes or [])
    found = make_plan(settings, Assumptions(processes=processes, tokens=tokens, samples=samples))
    if header:
        asked = {"--processes": processes, "--tokens": tokens, "--samples": samples}
        usual = {"--processes": 1, "--tokens": 32, "--samples": None}
        options = [f" {name} {value}" for name, value in asked.items() if value != usual[name]]
        changed = "".join(f" {change}" for change in changes or [])
        write_header(config, plan_paragraph(found, f"llmdiff plan {config}{changed}{''.join(options)}"))
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else plan_text(found))
