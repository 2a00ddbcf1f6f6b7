"""All that a run has to remember, saved and put back so that not one bit differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmdiff.errors import LLMDiffError
from llmdiff.training.checkpoint import (
    load_checkpoint,
    optimizer_parts,
    part,
    restore_optimizer,
    save_checkpoint,
)
from llmdiff.training.ema import Ema
from llmdiff.training.processes import Processes, like, whole_tensor


class RunState:
    """Weights, averages and moments of a run, and where they are kept.

    `same` are settings that a checkpoint has to agree with; `metadata` is kept beside them.
    """

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, nn.Parameter],
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        processes: Processes,
        *,
        same: Mapping[str, Any],
        keep_last: int,
        metadata: Mapping[str, Any],
    ) -> None:
        self.folder, self.parameters, self.ema = folder, parameters, ema
        self.optimizer, self.scaler, self.processes = optimizer, scaler, processes
        self.same, self.keep_last, self.metadata = same, keep_last, metadata

    def save(self, step: int, validation_loss: float | None) -> None:
        """Write a checkpoint on the main process; returns nothing.

        Raises:
            OutputError: see `save_checkpoint`.
        """
        tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.values.items()}
        moments, numbers = optimizer_parts(self.optimizer)
        # Every process takes part in bringing shards together; only one writes.
        whole = {name: whole_tensor(value) for name, value in (tensors | moments).items()}
        state: dict[str, Any] = {"extra": dict(self.same), "metadata": dict(self.metadata)}
        if numbers:
            state["optimizer"] = numbers
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if validation_loss is not None:
            state["validation_loss"] = validation_loss
        self.processes.together(
            lambda: save_checkpoint(
                self.folder, step=step, tensors=whole, state=state, keep_last=self.keep_last
            )
        )

    def resume(self) -> int:
        """Put the last checkpoint back and return its step, 0 where there is none.

        Raises:
            LLMDiffError: it was made with other settings, or of other parameters.
            CorruptWeightsError: all checkpoints are damaged.
        """
        found = load_checkpoint(self.folder)
        if found is None:
            return 0
        state, tensors = found
        was = {"parts_per_step": 1, **state["extra"]}
        changed = sorted(key for key in self.same if was.get(key) != self.same[key])
        if changed:
            raise LLMDiffError(
                f"{self.folder}: its checkpoint was made with { {key: was.get(key) for key in changed} }, this run "
                f"has { {key: self.same[key] for key in changed} }; use another folder"
            )
        weights = part(tensors, "weights")
        self._check_shapes(weights)
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(like(value, self.parameters[name]))
            for name, value in part(tensors, "ema").items():
                self.ema.values[name].copy_(like(value, self.ema.values[name]))
        ordered = [member for group in self.optimizer.param_groups for member in group["params"]]
        moments = {
            name: like(value, ordered[int(name.split(".")[1])]) if value.ndim else value
            for name, value in tensors.items()
            if name.startswith("optimizer.")
        }
        restore_optimizer(self.optimizer, moments, state.get("optimizer"))
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        return int(state["step"])

    def _check_shapes(self, weights: Mapping[str, Tensor]) -> None:
        was = {name: tuple(value.shape) for name, value in weights.items()}
        now = {name: tuple(value.shape) for name, value in self.parameters.items()}
        changed = sorted(name for name in was | now if was.get(name) != now.get(name))
        if changed:
            first = changed[0]
            raise LLMDiffError(
                f"{self.folder}: its checkpoint was made of other parameters, {len(changed)} differ: {first} has "
                f"shape {was.get(first, 'none')} there and {now.get(first, 'none')} in this run; use another folder"
            )
