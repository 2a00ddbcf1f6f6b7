"""The verb `llmdiff batch`; the work is done elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli_output import set_up


def batch(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where pictures go: 000000.png ...")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every prompt's first picture.")] = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 20,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", help="Classifier-free guidance.")
    ] = 3.0,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What not to draw.")
    ] = None,
    number: Annotated[int, typer.Option("--number", min=1, help="Pictures of every prompt.")] = 1,
    height: Annotated[int | None, typer.Option("--height", help="Pixels [the pipeline's own].")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels [the pipeline's own].")] = None,
    scale: Annotated[
        float,
        typer.Option("--scale", min=0.0, max=1.0, help="From 0, the base text encoder, to 1, the LLM."),
    ] = 1.0,
    adapter: Annotated[
        str, typer.Option("--adapter", help="A trained adapter: name, folder or Hub id.")
    ] = "openmoji",
    llm: Annotated[
        str | None, typer.Option("--llm", help="Name, folder, GGUF or Hub id [the adapter's own].")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Folder or Hub id [the adapter's own].")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, mps [an accelerator, else cpu].")
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Share the work out by Ray: here, or on the cluster of $RAY_ADDRESS."),
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, with --ray.")] = 2,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what the libraries have to say, too.")
    ] = False,
) -> None:
    """Draw every prompt of a file. Run again, it draws what is not there yet."""
    set_up(verbose)
    from llmdiff.batch_drawing import draw_prompts, read_prompts
    from llmdiff.drawing import DrawingSettings
    from llmdiff.loading import Models

    texts = read_prompts(prompts)
    settings = DrawingSettings(
        prompt=texts[0],
        negative_prompt=negative_prompt,
        seed=seed,
        number=number,
        steps=steps,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
    )
    models = Models(adapter=adapter, llm=llm, pipeline=pipeline, scale=scale, device=device)
    drawn = draw_prompts(texts, settings, models, out, workers=workers if ray else None)
    for path in drawn:
        typer.echo(path)
