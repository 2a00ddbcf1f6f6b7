"""Create the optimiser of a run with its parameter groups, and compute the learning rate of every step."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.muon import MuonAdamW

LrScale = Callable[[str], tuple[float, float]]

# The adapter's scalar parameters, which have a separate learning rate and no weight decay.
_SCALARS = ("gamma", "kappa", "h_raw", ".a1", ".b1", ".a2", ".b2")


def adapter_lr_scale(scalar_share: float) -> LrScale:
    """Return the `lr_scale` of an adapter: gains and gates get `scalar_share` of the learning rate, no decay."""
    return lambda name: (scalar_share, 0.0) if name.endswith(_SCALARS) else (1.0, 1.0)


def lr_factor(config: LoopConfig, step: int) -> float:
    """Return the learning rate of a step as a share of its maximum, between 0 and 1."""
    warmup_steps = min(config.lr_warmup_steps, round(config.lr_warmup_share * config.steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, config.steps - warmup_steps)
    if config.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.lr_schedule == "linear":
        return 1 - min(1.0, done)
    if config.lr_schedule == "trapezoid":
        return min(1.0, (config.steps - step) / (config.lr_decay_share * config.steps))
    return 1.0


def create_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: LoopConfig,
    lr_scale: LrScale,
    muon: Callable[[str], bool],
    *,
    fused: bool,
) -> torch.optim.Optimizer:
    """Return the optimiser; `lr_scale(name)` gives a parameter's factors of learning rate and weight decay.

    Raises:
        ConfigError: Muon is combined with sharding or another optimiser.
        LLMDiffError: the package of 8-bit AdamW is not installed.
    """
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        share, decay = lr_scale(name)
        matrix = parameter.ndim > 1
        # No weight decay for scalars, gains and biases.
        grouped.setdefault((share, decay * matrix, matrix and muon(name)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": config.learning_rate * share,
            "weight_decay": config.weight_decay * decay,
            "muon": by_muon,
        }
        for (share, decay, by_muon), members in grouped.items()
    ]
    if any(group["muon"] for group in groups) and (config.sharded or config.optimizer != "adamw"):
        raise ConfigError(
            f"muon is set with optimizer {config.optimizer!r} and sharded={config.sharded}: it needs whole "
            'matrices and optimizer "adamw"; leave out one of them'
        )
    if config.optimizer == "adamw8bit":
        check_extra("adamw8bit", "bitsandbytes")
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            groups, lr=config.learning_rate, betas=config.betas
        )
        return optimizer
    muon_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return MuonAdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused, muon_dtype=muon_dtype)
