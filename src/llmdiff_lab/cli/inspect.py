"""The verbs of `llmdiff-lab inspect`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmdiff.checks import bounds
from llmdiff.checks.bounds import Bounds
from llmdiff.cli.help_text import HelpfulGroup
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Checker, Guidance, Steps, Verb, Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, load, load_controller, usable_device
from llmdiff.environment import check_extra
from llmdiff.errors import PromptError
from llmdiff.files import is_blank

app = typer.Typer(
    cls=HelpfulGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Inspect the updates of the LLM's blocks for every word, and the denoiser's attention to it.",
)


Lone = Literal["token", "token+bos"]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt to look at.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the results.")]


@app.command(cls=Verb, epilog='llmdiff-lab inspect scores "a cat to the left of a dog"')
@takes_models("device", "dtype", "trust_remote_code", "reword_url", "reword_model")
def scores(
    prompt: Prompt,
    out: Out = Path("scores"),
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Adapter whose LLM and weights to use: name, folder or Hub id."),
    ] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="An LLM: name, folder, GGUF or Hub id [the adapter's own].")
    ] = None,
    lone: Annotated[
        Lone, typer.Option("--lone", help="What a lone token attends to, without an adapter.")
    ] = "token+bos",
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Show every block's updates, score and share of the text encoding, as plots, a page and JSON.

    With neither --adapter nor --llm: the shipped adapter.
    """
    set_up(verbose)
    _check(prompt)
    check_extra("inspect", "matplotlib")
    import torch

    from llmdiff.files import writable_folder
    from llmdiff.language.llm import DecoderLLM
    from llmdiff_lab.inspection.score_plots import save_scores
    from llmdiff_lab.inspection.scores import inspect_scores

    writable_folder(out)
    place = usable_device(models.device)
    rewording = models.control.rewording
    if adapter is None and llm is not None:
        alone = DecoderLLM.from_pretrained(
            llm,
            device=place,
            dtype=getattr(torch, models.dtype),
            trust_remote_code=models.trust_remote_code,
        )
        report = inspect_scores(alone, prompt, lone=lone, rewording=rewording)
    else:
        models = replace(models, adapter=adapter or "openmoji", llm=llm)
        controller = load_controller(models, device=place)
        assert isinstance(controller.llm, DecoderLLM)  # the verb has no --encodings
        report = inspect_scores(controller.llm, prompt, adapter=controller.adapter, rewording=rewording)
    for path in save_scores(report, out):
        typer.echo(path)


@app.command(cls=Verb, epilog='llmdiff-lab inspect attention "a cat to the left of a dog" --seed 1')
@takes_models()
def attention(
    prompt: Prompt,
    out: Out = Path("attention"),
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of the picture.")] = 0,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Draw a picture and show the denoiser's attention to each word, in total and step by step."""
    set_up(verbose)
    _check(prompt)
    check_extra("inspect", "matplotlib")
    from llmdiff.drawing.attention_maps import draw_with_maps
    from llmdiff.files import writable_folder
    from llmdiff_lab.inspection.attention_plots import save_maps

    writable_folder(out)
    controller, pipe = load(models, base_draws=False)
    maps = draw_with_maps(
        controller, pipe, prompt, models.control, seed=seed, steps=steps, guidance_scale=guidance_scale
    )
    for path in save_maps(maps, out):
        typer.echo(path)


def _check(prompt: str) -> None:
    if is_blank(prompt):
        raise PromptError(f"prompt is blank ({prompt!r}), expected a description of the picture: write one")


@app.command(cls=Verb, epilog="llmdiff-lab inspect denoising --model smollm2-135m --number 200")
def denoising(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="Any language model: name, folder or Hub id; may be repeated.",
            show_default=False,
        ),
    ],
    out: Out = Path("denoising"),
    texts: Annotated[
        Path | None, typer.Option("--texts", help="A file of texts, one a line [captions of drawn scenes].")
    ] = None,
    number: Annotated[int, number("--number", Bounds(20, 1_000_000), help="Number of texts.")] = 1000,
    verbose: Verbose = False,
) -> None:
    """Show how the states of decoder-only, encoder-only and encoder-decoder models approach their final ones."""
    set_up(verbose)
    check_extra("inspect", "matplotlib")
    from llmdiff.files import writable_folder
    from llmdiff_lab.inspection.denoising import load_encoder, read_denoising
    from llmdiff_lab.inspection.denoising_plots import denoising_table, save_denoising
    from llmdiff_lab.inspection.texts import read_texts

    writable_folder(out)
    chosen = read_texts(texts, number)
    reports = []
    for name in model:
        encoder, tokenizer, kind = load_encoder(name)
        reports.append(read_denoising(encoder, tokenizer, chosen, name=name, kind=kind))
    save_denoising(reports, out)
    typer.echo(denoising_table(reports), nl=False)


@app.command(cls=Verb, epilog="llmdiff-lab inspect probes --captions 500")
def probes(
    out: Out = Path("probes"),
    llm: Annotated[str, typer.Option("--llm", help="LLM: name, folder, GGUF or Hub id.")] = "smollm2-135m",
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help='Sentence encoder: "none", folder or Hub id [minilm, where installed].'
        ),
    ] = None,
    captions: Annotated[int, number("--captions", bounds.COUNT, help="Training captions.")] = 1500,
    tests: Annotated[int, number("--tests", bounds.COUNT, help="Test captions of every split.")] = 150,
    steps: Annotated[
        int, number("--steps", bounds.TRAINING_STEPS, help="Training steps of each probe.")
    ] = 600,
    lone: Annotated[Lone, typer.Option("--lone", help="What a lone token attends to.")] = "token+bos",
    template: Annotated[
        str | None, typer.Option("--template", help="The LLM's text, with {prompt} in it [{prompt}].")
    ] = None,
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of captions and probes.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Show what linear probes recover of captions from scores, the last layer, all layers and an encoder.

    Run again in the same folder to measure only missing rows.
    """
    set_up(verbose)
    check_extra("inspect", "matplotlib")
    from llmdiff.environment import command_line
    from llmdiff.files import writable_folder
    from llmdiff_lab.inspection.probe_plots import probe_tables, save_probes
    from llmdiff_lab.inspection.probe_table import ProbeSettings, measure_probes
    from llmdiff_lab.rivals.encoder import chosen_encoder

    writable_folder(out)
    settings = ProbeSettings(
        llm=llm,
        encoder=chosen_encoder(encoder),
        captions=captions,
        tests=tests,
        steps=steps,
        lone=lone,
        template=template,
        seed=seed,
    )
    record = measure_probes(settings, out)
    save_probes(record | {"command": command_line()}, out)
    typer.echo(probe_tables(record), nl=False)


@app.command(cls=Verb, epilog="llmdiff-lab inspect blocks --prompts 5 --out blocks")
@takes_models()
def blocks(
    out: Out = Path("blocks"),
    prompts: Annotated[int, number("--prompts", bounds.COUNT, help="Prompts of every split.")] = 10,
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of the prompts.")] = 0,
    checker: Checker = "openmoji",
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Show which of the LLM's blocks an adapter draws with: all but each block, and each block alone.

    Two drawings of every prompt for each block. Run again in the same folder, it draws what is not there yet.
    """
    set_up(verbose)
    check_extra("inspect", "matplotlib")
    from llmdiff.drawing.models import models_digests
    from llmdiff.environment import command_line
    from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker, suite_of_pipeline
    from llmdiff.files import writable_folder
    from llmdiff_lab.inspection.block_accuracy import measure_blocks
    from llmdiff_lab.inspection.block_plots import block_table, save_blocks

    writable_folder(out)
    controller, pipe = load(models, base_draws=False)
    scorer = SceneScorer(load_checker(checker).to(usable_device(models.device)))
    report = measure_blocks(
        controller,
        pipe,
        suite_of_pipeline(controller.adapter.config.base_model_id, scorer.checker, prompts, seed),
        scorer,
        out,
        control=models.control,
        steps=steps,
        guidance_scale=guidance_scale,
        settings=models_digests(controller, pipe),
        command=command_line(),
    )
    save_blocks(report, out)
    typer.echo(block_table(report))
    typer.echo(out / "blocks.png")
