"""The training loop: seeded by (seed, step), so that a run that was killed resumes bit for bit."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmdiff.errors import LLMDiffError
from llmdiff.training.checkpoint import load_checkpoint, part, restore_optimizer, save_checkpoint
from llmdiff.training.muon import MuonAdamW

StepLoss = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train. Units: `checkpoint_every_s` in seconds, everything else in steps.

    `trapezoid` holds the rate and brings it down over the last `lr_decay_share` of the steps, so that a run can be
    prolonged without having decayed too early. `ema_horizon` is the number of steps over which the exponential
    moving average forgets; at step n the decay is min(1 - 1/ema_horizon, (1 + n) / (10 + n)), so that early steps
    are not remembered.
    """

    steps: int
    learning_rate: float
    lr_warmup_steps: int = 100
    lr_schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "cosine"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    lr_decay_share: float = 0.25
    ema_horizon: int = 500
    seed: int = 0
    checkpoint_every_s: float = 180.0
    sample_every: int = 1000


def lr_factor(config: LoopConfig, step: int) -> float:
    """The learning rate of a step as a share of its maximum, between 0 and 1."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    done = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    if config.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.lr_schedule == "linear":
        return 1 - min(1.0, done)
    if config.lr_schedule == "trapezoid":
        return min(1.0, (config.steps - step) / (config.lr_decay_share * config.steps))
    return 1.0


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step: everything random in a step comes from it, nothing from before it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % (2**63))


class Ema:
    """An exponential moving average of parameters, kept in float32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], horizon: int) -> None:
        self.horizon = horizon
        self._live = list(parameters.values())
        self.values = {name: parameter.detach().clone().float() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(1 - 1 / self.horizon, (1 + step) / (10 + step))
        averages = list(self.values.values())
        torch._foreach_lerp_(averages, [live.detach().float() for live in self._live], 1 - decay)


def train(
    modules: Mapping[str, nn.Module],
    step_loss: StepLoss,
    config: LoopConfig,
    folder: Path,
    *,
    title: str,
    lr_scale: Callable[[str], tuple[float, float]] = lambda name: (1.0, 1.0),
    muon: Callable[[str], bool] = lambda name: False,
    on_sample: Callable[[int], None] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Trains the modules' parameters that require gradients and leaves the averaged weights in the modules.

    `step_loss(step, generator)` gives the loss and figures to log. `lr_scale(name)` gives a parameter's share of
    the learning rate and of the weight decay, `muon(name)` whether a matrix is updated by Muon. Run again, it
    resumes from the last checkpoint in `folder`; run after the last step, it only loads. `on_sample(step)` is
    called with the averaged weights in place.

    Raises:
        LLMDiffError: the loss is not finite; the checkpoint was made by a run with other settings.
    """
    parameters = {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    optimizer = MuonAdamW(
        _groups(parameters, config, lr_scale, muon), lr=config.learning_rate, betas=config.betas, fused=True
    )
    shares = [group["lr"] for group in optimizer.param_groups]
    ema = Ema(parameters, config.ema_horizon)
    extra = dict(
        extra or {}, learning_rate=config.learning_rate, lr_schedule=config.lr_schedule, seed=config.seed
    )
    first = _resume(folder, parameters, ema, optimizer, extra)
    folder.mkdir(parents=True, exist_ok=True)
    log = _Log(folder / "log.jsonl", first)
    saved_at = time.monotonic()
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=title,
        mininterval=5,
        smoothing=0.05,
    )
    for step in bar:
        factor = lr_factor(config, step)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = share * factor
        loss, figures = step_loss(step, step_generator(config.seed, step))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LLMDiffError(
                f"{title}: the loss is {value} at step {step}; lower learning_rate and run again"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(step)
        log.add(step, {"loss": value, "grad_norm": float(norm), **figures})
        if log.shown:
            bar.set_postfix_str(log.shown, refresh=False)
        done = step + 1
        if time.monotonic() - saved_at > config.checkpoint_every_s or done == config.steps:
            log.flush()
            save_checkpoint(
                folder, step=done, weights=parameters, ema=ema.values, optimizer=optimizer, extra=extra
            )
            saved_at = time.monotonic()
        if on_sample is not None and (done % config.sample_every == 0 or done == config.steps):
            with averaged(parameters, ema):
                on_sample(done)
    log.flush()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ema.values[name])


class averaged:
    """A context in which the parameters hold their moving averages."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], ema: Ema) -> None:
        self._parameters, self._ema = parameters, ema

    @torch.no_grad()
    def __enter__(self) -> None:
        self._live = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.copy_(self._ema.values[name])

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._live[name])


def _groups(
    parameters: Mapping[str, nn.Parameter],
    config: LoopConfig,
    lr_scale: Callable[[str], tuple[float, float]],
    muon: Callable[[str], bool],
) -> list[dict[str, Any]]:
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        share, decay = lr_scale(name)
        matrix = parameter.ndim > 1
        # Scalars, gains and biases are not pulled towards zero.
        grouped.setdefault((share, decay * matrix, matrix and muon(name)), []).append(parameter)
    return [
        {
            "params": members,
            "lr": config.learning_rate * share,
            "weight_decay": config.weight_decay * decay,
            "muon": by_muon,
        }
        for (share, decay, by_muon), members in grouped.items()
    ]


def _resume(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
) -> int:
    found = load_checkpoint(folder)
    if found is None:
        return 0
    state, tensors = found
    changed = sorted(key for key in extra if state["extra"].get(key) != extra[key])
    if changed:
        was = {key: state["extra"].get(key) for key in changed}
        now = {key: extra[key] for key in changed}
        raise LLMDiffError(
            f"{folder}: its checkpoint was made with {was}, this run has {now}; use another folder"
        )
    with torch.no_grad():
        for name, value in part(tensors, "weights").items():
            parameters[name].copy_(value)
        for name, value in part(tensors, "ema").items():
            ema.values[name].copy_(value)
    restore_optimizer(optimizer, tensors)
    return int(state["step"])


class _Log:
    """Means of every figure over 50 steps, one JSON line each."""

    def __init__(self, path: Path, first_step: int, every: int = 50) -> None:
        self.path, self.every, self.shown = path, every, ""
        self._sums: dict[str, float] = {}
        self._count, self._step, self._since, self._lines = 0, first_step, time.monotonic(), list[str]()
        if path.exists():  # a killed run logged past its last checkpoint
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= first_step]
            path.write_text("".join(f"{line}\n" for line in kept))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count, self._step = self._count + 1, step + 1
        if self._count == self.every:
            self.flush()

    def flush(self) -> None:
        if not self._count:
            return
        now = time.monotonic()
        means = {name: value / self._count for name, value in self._sums.items()}
        line = {"step": self._step, **means, "steps_per_s": self._count / max(now - self._since, 1e-9)}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.shown = f"loss {means['loss']:.4f}"
        self._sums, self._count, self._since = {}, 0, now


def read_log(path: Path) -> Sequence[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in path.read_text().splitlines()]
