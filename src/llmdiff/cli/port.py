"""The verb `llmdiff port`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmdiff.checks import bounds
from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Checker, Verbose, number
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, load, usable_device
from llmdiff.environment import check_extra
from llmdiff.files import writable_folder


@takes_models("adapter", "pipeline", "device", "trust_remote_code")
def port(
    llm: Annotated[str, typer.Option("--llm", help="The new LLM: name, folder, GGUF or Hub id.")],
    captions: Annotated[
        Path,
        typer.Option("--captions", metavar="FILE", help="Captions: .txt, one a line, or .jsonl or .csv."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the new adapter.")],
    steps: Annotated[
        int,
        number("--steps", bounds.TRAINING_STEPS_OR_NONE, help="Training steps after the linear map."),
    ] = 300,
    batch_size: Annotated[int, number("--batch-size", bounds.COUNT, help="Captions in a step.")] = 16,
    learning_rate: Annotated[
        float, number("--learning-rate", bounds.LEARNING_RATE, help="Highest learning rate.")
    ] = 3e-4,
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of the training and the prompts.")] = 0,
    prompts: Annotated[
        int,
        number(
            "--prompts",
            bounds.COUNT_OR_NONE,
            help="Prompts of every split to draw with both adapters and score with --checker.",
        ),
    ] = 0,
    checker: Checker = "openmoji",
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Port an adapter to another LLM from captions alone, without pictures. Run again to resume.

    Prints how well the new adapter agrees with the old one: on held-out captions, and with --prompts on pictures.
    """
    set_up(verbose)
    check_extra("train", "pydantic", "yaml", "datasets")
    from llmdiff.evaluation.statistics import bootstrap_mean
    from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker
    from llmdiff.language.llm import DecoderLLM
    from llmdiff.training.captions import read_captions
    from llmdiff.training.port import PortSettings, port_adapter

    texts = read_captions(captions)
    writable_folder(out)
    device = usable_device(models.device)
    scorer = SceneScorer(load_checker(checker).to(device)) if prompts else None
    old, pipe = load(models)
    pipe.set_progress_bar_config(disable=True)
    new = DecoderLLM.from_pretrained(llm, device=device, trust_remote_code=models.trust_remote_code)
    settings = PortSettings(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    ported = port_adapter(old, new, pipe, texts, out, settings)
    found = ported.token_map
    typer.echo(f"wrote {out}: {old.llm.id} -> {new.id}, {found.tokens} tokens of {len(set(texts))} captions")
    typer.echo("unexplained share of the old adapter's variance on held-out captions [95 % interval]:")
    typer.echo(f"  encodings of the LLM              closed form {100 * found.unexplained:.1f} %")
    for name, shares in (("closed form", ported.closed_form), ("trained", ported.trained)):
        if shares is not None and (steps or name == "closed form"):
            mean = bootstrap_mean(shares)
            typer.echo(
                f"  outputs of the attention layers   {name} {100 * mean.mean:.1f} % [{100 * mean.low:.1f}, "
                f"{100 * mean.high:.1f}]"
            )
    if scorer is not None:
        _compare_pictures(old, ported.controller, pipe, scorer, out, prompts, seed)


def _compare_pictures(old: Any, new: Any, pipe: Any, scorer: Any, out: Path, prompts: int, seed: int) -> None:
    """Draw the same prompts with both adapters from the same seeds, and print what the checker reads."""
    from llmdiff.evaluation.report import evaluate_suite
    from llmdiff.evaluation.suites.scenes import scene_prompts, scenes_suite, world_of_pipeline
    from llmdiff.evaluation.systems import BASE, OURS, controller_systems
    from llmdiff.evaluation.tables import report_tables
    from llmdiff.language.digests import adapter_digest

    base = str(old.adapter.config.base_model_id)
    rows = scene_prompts(prompts, seed, world_of_pipeline(base, scorer.checker))
    systems = {
        # Reports give differences from the system `base`.
        BASE: controller_systems(old, pipe)[OURS],
        "ported": controller_systems(new, pipe)[OURS],
    }
    report = evaluate_suite(
        systems,
        scenes_suite(rows),
        out / "port" / "evaluation",
        metrics=[scorer],
        device=str(pipe.device),
        seed=seed,
        settings={"base is": "the old adapter", "adapter_sha256": adapter_digest(new.adapter)},
    )
    typer.echo(f"\nbase: the old adapter, on {old.llm.id}; ported: the new one, on {new.llm.id}")
    typer.echo(report_tables(report))
