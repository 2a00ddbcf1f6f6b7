"""The block of options of every verb that draws or evaluates: the models, and how the LLM controls the pipeline."""

from collections.abc import Callable
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.blocks import takes
from llmdiff.cli.options import Device, number
from llmdiff.drawing.models import Dtype, Models

Scale = Annotated[
    float | None,
    number("--scale", bounds.SCALE, help="From 0, the base text encoder, to 1, the LLM [the adapter's own]."),
]


def _models(
    adapter: Annotated[
        str, typer.Option("--adapter", help="A trained adapter: name, folder or Hub id.")
    ] = "openmoji",
    llm: Annotated[
        str | None, typer.Option("--llm", help="LLM: name, folder, GGUF or Hub id [the adapter's own].")
    ] = None,
    encodings: Annotated[
        str | None,
        typer.Option("--encodings", help="File or folder of `llmdiff encode`: no LLM is loaded."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Pipeline: folder or Hub id [the adapter's own].")
    ] = None,
    scale: Scale = None,
    keep_base_text: Annotated[
        bool,
        typer.Option("--keep-base-text", help="Let the pretrained attention also read the base's own text."),
    ] = False,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Read (word:1.3) in a prompt as a weight for the LLM.")
    ] = False,
    block_gains: Annotated[
        str | None,
        typer.Option("--block-gains", help='Factors of the LLM\'s blocks: "0-9=0.5,20=2" [1 for all].'),
    ] = None,
    layer_scale: Annotated[
        str | None,
        typer.Option("--layer-scale", help='Scales of layers in place of --scale: "down_blocks.*=0.5".'),
    ] = None,
    device: Device = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Dtype of LLM and pipeline.")] = "float32",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the LLM.")
    ] = False,
    reword_url: Annotated[
        str | None,
        typer.Option("--reword-url", help="OpenAI-compatible address of a closed LLM that rewords prompts."),
    ] = None,
    reword_model: Annotated[
        str | None,
        typer.Option("--reword-model", help="Name of the closed LLM. Its API key: $LLMDIFF_REWORD_API_KEY."),
    ] = None,
    reword_answers: Annotated[
        int,
        number(
            "--reword-answers", bounds.ANSWERS, help="Number of its answers; their encodings are averaged."
        ),
    ] = 1,
) -> Models:
    return Models(**locals())


def takes_models(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds these options, by default all, to a verb, and passes it the `models` they name."""
    return takes(_models, "models", *names)
