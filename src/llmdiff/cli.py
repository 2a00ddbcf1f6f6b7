"""The command `llmdiff`: one thin verb for each thing to do; the work is done elsewhere."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmdiff import (
    __version__,
    cli_batch,
    cli_benchmark,
    cli_compare_llms,
    cli_doctor,
    cli_evaluate,
    cli_inspect,
    cli_plan,
    cli_study,
    cli_train,
    cli_ui,
)
from llmdiff.cli_options import (
    Adapter,
    Device,
    Guidance,
    Height,
    Llm,
    Negative,
    Number,
    Pipeline,
    Scale,
    Steps,
    Verbose,
    Via,
    ViaAnswers,
    ViaModel,
    Width,
)
from llmdiff.cli_output import set_up
from llmdiff.errors import LLMDiffError
from llmdiff.extras import check_extra

# Modules that import torch are imported inside the verbs: `llmdiff --help` answers at once.


class _Verbs(TyperGroup):
    """Prints our own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMDiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


# Without rich: its import would take longer than all the rest of `llmdiff --help`.
app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline.",
)
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_inspect.app, name="inspect")
app.command()(cli_evaluate.evaluate)
app.command()(cli_train.train)
app.command()(cli_train.prepare)
app.command()(cli_plan.plan)
app.command()(cli_batch.batch)
app.command()(cli_ui.ui)
app.command()(cli_doctor.doctor)
app.command()(cli_benchmark.benchmark)
app.command("compare-llms")(cli_compare_llms.compare_llms)


class Dtype(StrEnum):
    """What models compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to write.", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the first picture [random].")]
Weighted = Annotated[
    bool, typer.Option("--weighted", help="(word:1.3) in a prompt is a weight for the LLM, not text.")
]
Computing = Annotated[Dtype, typer.Option("--dtype", help="What LLM and pipeline compute in.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the LLM.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the key that clients must send [$LLMDIFF_TOKEN; none]."),
]


@app.command()
def generate(
    prompt: Prompt,
    out: Out,
    seed: Seed = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    number: Number = 1,
    height: Height = None,
    width: Width = None,
    scale: Scale = 1.0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    pipeline: Pipeline = None,
    device: Device = None,
    dtype: Computing = Dtype.float32,
    weighted: Weighted = False,
    via: Via = None,
    via_model: ViaModel = None,
    via_answers: ViaAnswers = 1,
    trust_remote_code: TrustCode = False,
    verbose: Verbose = False,
) -> None:
    """Draw a prompt with the LLM in control. More than one picture: NAME-0.png, NAME-1.png and so on."""
    set_up(verbose)
    from llmdiff import drawing, loading

    settings = drawing.DrawingSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=drawing.new_seed() if seed is None else seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    models = loading.Models(
        adapter=adapter,
        llm=llm,
        pipeline=pipeline,
        scale=scale,
        device=device,
        dtype=dtype.value,
        trust_remote_code=trust_remote_code,
        via=via,
        via_model=via_model,
        via_answers=via_answers,
    )
    for path in drawing.generate(settings, models, out, weighted=weighted):
        typer.echo(path)


@app.command()
def compare(
    prompt: Prompt,
    out: Out,
    seed: Seed = None,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: Negative = None,
    number: Number = 4,
    height: Height = None,
    width: Width = None,
    scale: Scale = 1.0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    pipeline: Pipeline = None,
    device: Device = None,
    dtype: Computing = Dtype.float32,
    weighted: Weighted = False,
    via: Via = None,
    via_model: ViaModel = None,
    via_answers: ViaAnswers = 1,
    trust_remote_code: TrustCode = False,
    verbose: Verbose = False,
) -> None:
    """Draw a prompt with the base text encoder and with the LLM, side by side, from the same seeds."""
    set_up(verbose)
    from llmdiff import drawing, loading

    settings = drawing.DrawingSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=drawing.new_seed() if seed is None else seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    models = loading.Models(
        adapter=adapter,
        llm=llm,
        pipeline=pipeline,
        scale=scale,
        device=device,
        dtype=dtype.value,
        trust_remote_code=trust_remote_code,
        via=via,
        via_model=via_model,
        via_answers=via_answers,
    )
    typer.echo(drawing.compare(settings, models, out, weighted=weighted))


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: TokenFile = None,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", min=1, max=64, help="Pictures in one pass [1 on a CPU: exact; else 8]."),
    ] = None,
    queue_size: Annotated[int, typer.Option("--queue-size", min=1, help="Requests that may wait.")] = 8,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds for a request.")] = 300,
    max_body_kb: Annotated[int, typer.Option("--max-body-kb", min=1, help="Size of a request.")] = 256,
    max_pixels: Annotated[
        int | None, typer.Option("--max-pixels", min=64, help="Of a picture [four times the pipeline's own].")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="Where clients reach the server [as they say].")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
    scale: Scale = 1.0,
    adapter: Adapter = "openmoji",
    llm: Llm = None,
    pipeline: Pipeline = None,
    via: Via = None,
    via_model: ViaModel = None,
    via_answers: ViaAnswers = 1,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Serve pictures over HTTP, with OpenAI's images API. Ctrl-C finishes what runs, then ends."""
    set_up(verbose)
    check_extra("serve", "uvicorn", "fastapi", "prometheus_client")
    from llmdiff import loading
    from llmdiff.serving.server import serve_images
    from llmdiff.serving.settings import ServeSettings, read_token

    token = read_token(token_file, os.environ.get("LLMDIFF_TOKEN"))
    place = loading.usable_device(device)
    settings = ServeSettings(
        model_id=Path(adapter).name if Path(adapter).is_dir() else adapter,
        token=token,
        max_batch=max_batch or (1 if place == "cpu" else 8),
        queue_size=queue_size,
        timeout_s=timeout_s,
        max_body_bytes=max_body_kb * 1024,
        max_pixels=max_pixels,
        log_prompts=log_prompts,
        public_url=public_url,
    )
    models = loading.Models(
        adapter=adapter,
        llm=llm,
        pipeline=pipeline,
        scale=scale,
        device=place,
        via=via,
        via_model=via_model,
        via_answers=via_answers,
    )
    serve_images(models, settings, host=host, port=port)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line."""
    app(prog_name="llmdiff")


if __name__ == "__main__":
    main()
