"""The verb `llmdiff serve`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmdiff.checks import bounds
from llmdiff.checks.bounds import Bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, usable_device
from llmdiff.environment import check_extra

TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the key that clients must send [$LLMDIFF_TOKEN; none]."),
]


@takes_models()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("--port", bounds.PORT, help="Port; 0 takes a free one.")] = 8000,
    token_file: TokenFile = None,
    max_batch: Annotated[
        int | None,
        number("--max-batch", Bounds(1, 64), help="Largest batch [1 on a CPU; else 8]."),
    ] = None,
    queue_size: Annotated[
        int, number("--queue-size", bounds.COUNT, help="Number of requests that may wait.")
    ] = 8,
    timeout_s: Annotated[
        float, number("--timeout", Bounds(1.0, 86_400.0), help="Longest time for a request, in seconds.")
    ] = 300,
    max_body_kb: Annotated[
        int, number("--max-body-kb", Bounds(1, 2**20), help="Largest size of a request.")
    ] = 256,
    max_pixels: Annotated[
        int | None,
        number("--max-pixels", Bounds(64, 2**28), help="Largest picture [four times the pipeline's own]."),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="Address for clients [the one they use].")
    ] = None,
    model_alias: Annotated[
        list[str] | None,
        typer.Option("--model-alias", metavar="NAME", help="Another name for the model; may be repeated."),
    ] = None,
    size_policy: Annotated[
        Literal["strict", "nearest"],
        typer.Option("--size-policy", help="The requested size, or the nearest one."),
    ] = "strict",
    max_upload_mb: Annotated[
        int, number("--max-upload-mb", Bounds(1, 1024), help="Largest size of a request with a picture.")
    ] = 32,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Serve pictures over HTTP, with OpenAI's images API. Ctrl-C finishes running requests, then ends."""
    set_up(verbose)
    check_extra("serve", "uvicorn", "fastapi", "prometheus_client", "python_multipart")
    from llmdiff.serving.server import serve_images
    from llmdiff.serving.settings import ServeSettings, read_secret

    place = usable_device(models.device)
    settings = ServeSettings(
        model_id=Path(models.adapter).name if Path(models.adapter).is_dir() else models.adapter,
        token=read_secret("token", token_file, os.environ.get("LLMDIFF_TOKEN")),
        max_batch=max_batch or (1 if place == "cpu" else 8),
        queue_size=queue_size,
        timeout_s=timeout_s,
        max_body_bytes=max_body_kb * 1024,
        max_pixels=max_pixels,
        log_prompts=log_prompts,
        public_url=public_url,
        model_aliases=tuple(model_alias or ()),
        size_policy=size_policy,
        max_upload_bytes=max_upload_mb * 2**20,
    )
    serve_images(replace(models, device=place), settings, host=host, port=port)
