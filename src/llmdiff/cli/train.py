"""The verbs `llmdiff train` and `llmdiff prepare`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli.options import Processes, Ray, Verbose
from llmdiff.cli.output import set_up
from llmdiff.environment import check_extra
from llmdiff.workers.jobs import Workers

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration; see configs/.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE ...]", help="Values that replace those of the file.", show_default=False
    ),
]


def train(config: Config, changes: Changes = None, verbose: Verbose = False) -> None:
    """Train an adapter. Run again to resume from the last checkpoint; SIGTERM saves and ends.

    Several processes: `accelerate launch -m llmdiff.cli train CONFIG.yaml`, or torch.distributed.run.
    """
    set_up(verbose)
    check_extra("train", "pydantic", "yaml", "datasets")
    from llmdiff.training.config import load_config
    from llmdiff.training.processes import launched_process
    from llmdiff.training.trainer import train_adapter

    settings = load_config(config, changes or [])
    adapter = train_adapter(settings)
    if not launched_process(settings.device).is_main_process:
        return
    typer.echo(adapter)
    if (curves := settings.out / "tensorboard").is_dir():
        typer.echo(f"curves and sample pictures: tensorboard --logdir {shlex.quote(str(curves))}")
    prompt = next(iter(settings.watch.prompts), "a cat")
    words = ["llmdiff", "compare", prompt, "--adapter", str(adapter)]
    typer.echo(f"next: {shlex.join(words)}")


def prepare(
    config: Config,
    changes: Changes = None,
    workers: Processes = 1,
    ray: Ray = False,
    verbose: Verbose = False,
) -> None:
    """Check the samples and fill the store of encodings and latents before training."""
    set_up(verbose)
    check_extra("train", "pydantic", "yaml", "datasets")
    from llmdiff.training.config import load_config
    from llmdiff.training.prepare import load_models
    from llmdiff.training.prepare import prepare as fill
    from llmdiff.training.processes import launched_process

    settings = load_config(config, changes or [])
    models = load_models(settings, launched_process(settings.device).device)
    chosen = Workers(count=workers, ray=ray)
    if chosen.here:
        made = fill(settings, models)
    else:
        from llmdiff.training.prepare_ray import prepare_on_workers

        made = prepare_on_workers(settings, models, chosen)
    typer.echo(
        f"{len(models.samples)} good samples, {models.samples.quarantined} in quarantine; new in "
        f"{settings.store_folder}: {made['captions']} captions, {made['pictures']} pictures"
    )
    typer.echo(f"next: {shlex.join(['llmdiff', 'train', str(config), *(changes or [])])}")
