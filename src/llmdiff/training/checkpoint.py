"""Checkpoints of a training run: safetensors and JSON only, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _STATE = "checkpoint.safetensors", "checkpoint.json"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
) -> None:
    """Writes one checkpoint over the last one; a kill at any instant leaves either the old or the new one.

    The tensors' file carries the step in its name, and the JSON file, replaced last and atomically, names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    saved = optimizer.state_dict()
    for index, state in saved["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    name = f"step-{step:08d}.{_TENSORS}"
    save_file(
        {key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.partial"
    )
    os.replace(folder / f"{name}.partial", folder / name)
    state = {"step": step, "tensors": name, "extra": dict(extra)}
    partial = folder / f"{_STATE}.partial"
    partial.write_text(json.dumps(state, indent=1))
    os.replace(partial, folder / _STATE)
    for old in folder.glob(f"step-*.{_TENSORS}*"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The last checkpoint's state and tensors, or None where there is none yet."""
    if not (folder / _STATE).exists():
        return None
    state = json.loads((folder / _STATE).read_text())
    return state, load_file(folder / state["tensors"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without that prefix."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts the saved moments back; learning rates and the like stay those of the running optimiser."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer").items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
