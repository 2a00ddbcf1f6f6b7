"""The training loop, seeded by (seed, step, part), so that an interrupted run resumes bit for bit."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmdiff.errors import ConfigError, DivergedError
from llmdiff.training.checkpoint import best_checkpoint
from llmdiff.training.log import TrainingLog, peak_memory_gb
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.optimizers import LrScale, create_optimizer, lr_factor
from llmdiff.training.processes import Processes, clipped_norm, stop_requests
from llmdiff.training.resume import RunState


@dataclass(frozen=True, kw_only=True)
class StepPart:
    """The part of a step's batch that one process computes in one pass, with its random generators.

    A step has `count` parts, the number of passes of all processes together. Each part has other random numbers, and
    those of the first part do not depend on `count`.

    Fields:
        generator: generator for random tensors, on the CPU, so that all devices get the same numbers.
    """

    step: int
    index: int
    count: int
    generator: torch.Generator

    @property
    def number(self) -> int:
        """Return the number of this part among those of all steps, from 0."""
        return self.step * self.count + self.index

    def rng(self, *key: int) -> np.random.Generator:
        """Return this part's numpy generator for a purpose identified by `key`."""
        return np.random.default_rng([*key, self.step, *([self.index] if self.index else [])])


StepLoss = Callable[[StepPart], tuple[Tensor, Mapping[str, float]]]
Validate = Callable[[int, int], tuple[float, float]]


def step_part(seed: int, step: int, index: int = 0, count: int = 1) -> StepPart:
    """Return a part of a step, whose random numbers depend only on (seed, step, index)."""
    number = (seed * 1_000_003 + step) * 2_654_435_761 + index * 0x9E3779B97F4A7C15
    generator = torch.Generator().manual_seed(number % (2**63))
    return StepPart(step=step, index=index, count=count, generator=generator)


class _Loss(nn.Module):
    """The loss as a module that owns all trained modules, as DDP and FSDP require."""

    def __init__(self, modules: Mapping[str, nn.Module], step_loss: StepLoss, processes: Processes) -> None:
        super().__init__()
        self.owned = nn.ModuleDict(modules)
        self._step_loss, self._processes = step_loss, processes

    def forward(self, part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        with self._processes.accelerator.autocast():
            return self._step_loss(part)


def train(
    modules: Mapping[str, nn.Module],
    step_loss: StepLoss,
    config: LoopConfig,
    folder: Path,
    *,
    title: str,
    lr_scale: LrScale = lambda name: (1.0, 1.0),
    muon: Callable[[str], bool] = lambda name: False,
    on_sample: Callable[[int], Image.Image | None] | None = None,
    validate: Validate | None = None,
    must_match: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    samples_per_part: int | None = None,
    trackers: Sequence[str] = (),
    tracking: Path | None = None,
) -> None:
    """Train the modules' parameters that require gradients, and leave the averaged weights in the modules.

    A repeated call resumes from the last checkpoint in `folder`; after the last step it only loads the weights.
    torch's global seed is set before every pass. SIGTERM finishes the current step, saves and raises SystemExit(0).

    Args:
        modules: modules to train by name.
        step_loss: part of a step => its loss and figures to log.
        config: settings of the loop.
        folder: folder of log and checkpoints, visible to all processes.
        title: name of the run in messages and trackers.
        lr_scale: parameter name => its factors of learning rate and weight decay.
        muon: parameter name => whether Muon updates it, if it is a matrix.
        on_sample: called with the step on the main process, with the averaged weights; a returned picture goes to the
            trackers.
        validate: (rank, processes) => sum and number of this process's validation losses, with the averaged weights.
        must_match: values that must be equal when a run resumes, besides the settings in `config` that change results.
        metadata: values stored with checkpoints and not compared.
        samples_per_part: number of samples in a part, to log samples per second.
        trackers: names of accelerate's trackers.
        tracking: folder of the trackers' files, by default `folder`.

    Raises:
        DivergedError: the loss is not finite or the gradient explodes; the weights are not updated.
        LLMDiffError: the checkpoint was made with other settings.
        OutputError: a checkpoint or the log cannot be written.
    """
    device = next(parameter.device for module in modules.values() for parameter in module.parameters())
    processes = Processes(config, device, tracking or folder, trackers)
    model = processes.wrap(_Loss(modules, step_loss, processes))
    parameters = {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    scaler = getattr(processes.accelerator, "scaler", None)
    # A loss scaler skips steps that overflow, which a fused optimiser does for each group separately.
    optimizer = create_optimizer(parameters, config, lr_scale, muon, fused=scaler is None)
    shares = [group["lr"] for group in optimizer.param_groups]
    # torch's foreach functions do not support sharded tensors.
    ema = EMAModel(parameters.values(), decay=1 - 1 / config.ema_horizon, foreach=not config.sharded)
    parts = config.accumulation_steps * processes.count
    run = RunState(
        folder=folder,
        parameters=parameters,
        ema=ema,
        optimizer=optimizer,
        scaler=scaler,
        processes=processes,
        loop=asdict(config),
        must_match={**(must_match or {}), "parts_per_step": parts},
        metadata=metadata or {},
    )
    first = run.resume()
    folder.mkdir(parents=True, exist_ok=True)
    processes.start_tracking(title, asdict(config))
    log = TrainingLog(folder / "log.jsonl", first, every=config.log_every, processes=processes)
    samples = None if samples_per_part is None else samples_per_part * parts
    saved_at = time.monotonic()
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=title,
        mininterval=5,
        smoothing=0.05,
        disable=not processes.is_main,
    )
    with stop_requests() as asked_to_stop:
        for step in bar:
            factor = lr_factor(config, step)
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = share * factor
            value = _passes(model, processes, config, step, log)
            due = processes.is_main and time.monotonic() - saved_at > config.checkpoint_every_s
            value, stops, dues = processes.totals([value, float(asked_to_stop()), float(due)])
            value /= parts
            if scaler is not None:
                scaler.unscale_(optimizer)
            norm = clipped_norm(parameters.values(), config.max_grad_norm)
            _check_finite(title, step, value, norm, config, scaled=scaler is not None)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=True)
            ema.step(parameters.values())
            log.add(step, {"grad_norm": norm})
            done, last = step + 1, step + 1 == config.steps
            now = {
                "learning_rate": config.learning_rate * factor,
                "memory_gb": round(peak_memory_gb(device), 3),
            }
            log.finish_step(now, samples=samples)
            if log.shown:
                bar.set_postfix_str(log.shown, refresh=False)
            measured = None
            if validate is not None and (done % config.validate_every == 0 or last):
                measured = _validated(validate, parameters, ema, processes)
                log.flush(now, samples=samples)
                if processes.is_main:
                    log.write({"step": done, "validation_loss": measured})
            improved = measured is not None and _improved(folder, measured, processes)
            if dues or stops or last or improved:
                log.flush(now, samples=samples)
                run.save(done, measured)
                saved_at = time.monotonic()
            if stops:
                processes.stop_tracking()
                raise SystemExit(0)
            if on_sample is not None and (done % config.sample_every == 0 or last):
                with averaged(ema, parameters), processes.unsharded():
                    processes.on_main(partial(_sample, on_sample, processes, done))
    log.flush({}, samples=samples)
    processes.stop_tracking()
    ema.copy_to(parameters.values())


def _sample(draw: Callable[[int], Image.Image | None], processes: Processes, step: int) -> None:
    if (picture := draw(step)) is not None:
        processes.track_picture("samples", picture, step)


def _passes(model: Any, processes: Processes, config: LoopConfig, step: int, log: TrainingLog) -> float:
    """Return the sum of losses of this process's parts of a step, and accumulate their gradients."""
    parts = config.accumulation_steps * processes.count
    value = 0.0
    for turn in range(config.accumulation_steps):
        part = step_part(config.seed, step, turn * processes.count + processes.rank, parts)
        torch.manual_seed(part.generator.initial_seed())  # dropout
        with processes.gradient_sync(turn + 1 == config.accumulation_steps):
            loss, figures = model(part)
            processes.accelerator.backward(loss)
        log.add(step, {"loss": float(loss.detach()), **figures})
        value += float(loss.detach())
    return value


def _improved(folder: Path, loss: float, processes: Processes) -> bool:
    """Return whether no checkpoint has a lower validation loss; the main process decides for all processes."""
    best = best_checkpoint(folder) if processes.is_main else None
    return processes.totals([float(processes.is_main and (best is None or loss < best[0]))])[0] > 0


def _check_finite(
    title: str, step: int, loss: float, norm: float, config: LoopConfig, *, scaled: bool
) -> None:
    """Raise DivergedError before a bad gradient changes the weights, so that every checkpoint is good."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"{title}: the loss is {loss} at step {step}; the last checkpoint is older: lower "
            "learning_rate and run again"
        )
    # A loss scaler tries large factors and skips steps with an infinite gradient.
    if not (norm <= config.stop_grad_norm or (scaled and not math.isfinite(norm))):
        raise DivergedError(
            f"{title}: the gradient's norm is {norm:.3g} at step {step}, more than stop_grad_norm "
            f"{config.stop_grad_norm:.3g}; the last checkpoint is older: lower learning_rate and run again"
        )


@contextmanager
def averaged(ema: EMAModel, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Return a context in which the parameters have their moving averages as values."""
    ema.store(parameters.values())
    ema.copy_to(parameters.values())
    try:
        yield
    finally:
        ema.restore(parameters.values())


def _validated(
    validate: Validate, parameters: Mapping[str, nn.Parameter], ema: EMAModel, processes: Processes
) -> float:
    autocast = processes.accelerator.autocast()
    with averaged(ema, parameters), processes.unsharded(), autocast, torch.no_grad():
        total, count = processes.totals(validate(processes.rank, processes.count))
    if not count:
        raise ConfigError("validation has no samples: set some aside, or leave it out")
    return total / count
