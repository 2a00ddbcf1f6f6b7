"""The verb `llmdiff ui`."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, usable_device
from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError


@takes_models(
    "keep_base_text",
    "device",
    "dtype",
    "trust_remote_code",
    "reword_url",
    "reword_model",
    "reword_answers",
)
def ui(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("--port", bounds.PORT, help="Port; 0 takes a free one.")] = 7860,
    password: Annotated[
        bool, typer.Option("--password", help="Ask for a password now; visitors must enter it.")
    ] = False,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", help="File with the visitors' password [$LLMDIFF_PASSWORD; none]."),
    ] = None,
    queue_size: Annotated[
        int, number("--queue-size", bounds.COUNT, help="Number of drawings that may wait.")
    ] = 8,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", help="An adapter to choose: name, folder or Hub id; may be repeated [openmoji]."
        ),
    ] = None,
    llm: Annotated[
        list[str] | None,
        typer.Option("--llm", help="An LLM to choose besides the adapter's own; may be repeated."),
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option("--pipeline", help="A pipeline to choose besides the adapter's own; may be repeated."),
    ] = None,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Open a page to draw on: base text encoder and LLM side by side, step by step. Ctrl-C ends it."""
    set_up(verbose)
    check_extra("ui", "gradio", "uvicorn", "fastapi", "prometheus_client")
    from llmdiff.serving.settings import UiSettings, read_secret
    from llmdiff.serving.ui_server import serve_ui

    # A log line per request would hide the address.
    logging.getLogger("llmdiff.serving").setLevel(logging.INFO if verbose else logging.WARNING)
    if password and password_file is not None:
        raise ConfigError("password and password_file are both given: choose one")
    asked = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if password else None
    settings = UiSettings(
        adapters=tuple(adapter or ["openmoji"]),
        llms=tuple(llm or ()),
        pipelines=tuple(pipeline or ()),
        base=replace(models, device=usable_device(models.device)),
        password=asked or read_secret("password", password_file, os.environ.get("LLMDIFF_PASSWORD")),
        queue_size=queue_size,
    )
    serve_ui(settings, host=host, port=port, on_start=lambda url: typer.echo(f"{url} (Ctrl-C ends it)"))
