"""The settings of one run of the training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the training loop.

    Fields:
        learning_rate: the maximum of the schedule.
        lr_schedule: "trapezoid" keeps the rate constant until it decays over the last `lr_decay_share` of the steps,
            so that a run can be prolonged.
        lr_warmup_steps: length of the warm-up, at most `lr_warmup_share` of all steps.
        ema_horizon: time constant of the exponential moving average. At step n the decay is
            min(1 - 1/ema_horizon, (1 + n) / (10 + n)), so that the first steps have little weight.
        accumulation_steps: parts of a step's batch on every process.
        stop_grad_norm: the run stops if the gradient's norm before clipping exceeds it.
        sharded: shard parameters, gradients and moments over the processes (FSDP) instead of replicating them (DDP).

    Units: `checkpoint_every_s` in seconds, all other durations in steps.
    """

    steps: int
    learning_rate: float
    lr_warmup_steps: int = 100
    lr_warmup_share: float = 1.0
    lr_schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "cosine"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    max_grad_norm: float = 1.0
    stop_grad_norm: float = 1e6
    lr_decay_share: float = 0.25
    ema_horizon: int = 500
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulation_steps: int = 1
    sharded: bool = False
    checkpoint_every_s: float = 180.0
    keep_last: int = 2
    sample_every: int = 1000
    validate_every: int = 1000
    log_every: int = 50
