"""The settings of one run of the training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast and on what to train.

    Units: `checkpoint_every_s` in seconds, `learning_rate` its maximum, everything else in steps.

    `trapezoid` holds the rate and brings it down over the last `lr_decay_share` of the steps, so that a run can be
    prolonged without having decayed too early. The warm-up is over after `lr_warmup_share` of the steps, however many
    `lr_warmup_steps` are. `ema_horizon` is the number of steps over which the exponential
    moving average forgets; at step n the decay is min(1 - 1/ema_horizon, (1 + n) / (10 + n)), so that early steps
    are not remembered. A step's batch has `accumulation_steps` parts on every process. A gradient whose norm
    exceeds `stop_grad_norm` before clipping has exploded, and the run stops. `sharded`: parameters, gradients and
    moments are shared out among the processes (FSDP) instead of kept by each (DDP).
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
