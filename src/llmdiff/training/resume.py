"""Save and restore the whole state of a run, so that resuming is exact."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from llmdiff.errors import LLMDiffError
from llmdiff.training.checkpoint import (
    load_checkpoint,
    optimizer_parts,
    part,
    restore_optimizer,
    save_checkpoint,
)
from llmdiff.training.processes import Processes, full_tensor, shard_like

# Settings that may change when a run resumes, because they do not change results. All others, also new ones, must be
# equal.
_HARMLESS = {"steps", "stop_grad_norm", "accumulation_steps", "sharded", "checkpoint_every_s", "keep_last"}
_HARMLESS |= {"sample_every", "validate_every", "log_every"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Weights, averages and moments of a run, and the folder of its checkpoints.

    Fields:
        loop: settings of the loop. must_match: other values that must equal those of a checkpoint.
        metadata: values stored with them and not compared.
    """

    folder: Path
    parameters: Mapping[str, nn.Parameter]
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    scaler: Any
    processes: Processes
    loop: Mapping[str, Any]
    must_match: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def save(self, step: int, validation_loss: float | None) -> None:
        """Write a checkpoint on the main process.

        Raises:
            OutputError: see `save_checkpoint`.
        """
        tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"ema.{name}": value for name, value in self._averages().items()}
        moments, numbers = optimizer_parts(self.optimizer)
        # All processes gather the shards; only the main process writes.
        whole = {name: full_tensor(value) for name, value in (tensors | moments).items()}
        metadata = {"loop": dict(self.loop), **self.metadata}
        state: dict[str, Any] = {"extra": dict(self.must_match), "metadata": metadata}
        if numbers:
            state["optimizer"] = numbers
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if validation_loss is not None:
            state["validation_loss"] = validation_loss
        self.processes.on_main(
            lambda: save_checkpoint(
                self.folder, step=step, tensors=whole, state=state, keep_last=self.loop["keep_last"]
            )
        )

    def resume(self) -> int:
        """Restore the last checkpoint and return its step, 0 if there is none.

        Raises:
            LLMDiffError: the checkpoint was made with other settings or has other parameters.
            CorruptWeightsError: all checkpoints are damaged.
        """
        found = load_checkpoint(self.folder)
        if found is None:
            return 0
        state, tensors = found
        self._check_settings(state)
        weights = part(tensors, "weights")
        self._check_shapes(weights)
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(shard_like(value, self.parameters[name]))
            for name, value in part(tensors, "ema").items():
                self._averages()[name].copy_(shard_like(value, self.parameters[name]))
        self.ema.optimization_step = int(state["step"])
        ordered = [member for group in self.optimizer.param_groups for member in group["params"]]
        moments = {
            name: shard_like(value, ordered[int(name.split(".")[1])]) if value.ndim else value
            for name, value in tensors.items()
            if name.startswith("optimizer.")
        }
        restore_optimizer(self.optimizer, moments, state.get("optimizer"))
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        return int(state["step"])

    def _averages(self) -> dict[str, Tensor]:
        return dict(zip(self.parameters, self.ema.shadow_params, strict=True))

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        metadata = state.get("metadata", {})
        settings, loop = flat(metadata.get("config", {})), metadata.get("loop", {})
        was = {"parts_per_step": 1, **settings, **loop, **state["extra"]}
        config = flat(self.metadata.get("config", {}))
        own = {key: value for key, value in config.items() if key.removeprefix("training.") not in self.loop}
        now = json.loads(json.dumps({**own, **self.loop, **self.must_match}))
        # Settings of the loop that a checkpoint lacks did not exist when it was written.
        changed = {
            name: (was.get(name), value)
            for name, value in now.items()
            if (name in was or name in self.must_match) and was.get(name) != value
        }
        compared = {*self.must_match, *self.loop} - _HARMLESS
        refused = {name: both for name, both in changed.items() if name in compared}
        if refused:
            raise LLMDiffError(
                f"{self.folder}: its checkpoint was made with { {name: old for name, (old, _) in refused.items()} }, "
                f"this run has { {name: new for name, (_, new) in refused.items()} }; set them back, or use another "
                "folder"
            )
        if changed and self.processes.is_main:
            said = ", ".join(f"{name} {new!r} instead of {old!r}" for name, (old, new) in changed.items())
            _log.warning("%s: resumes with %s", self.folder, said)

    def _check_shapes(self, weights: Mapping[str, Tensor]) -> None:
        was = {name: tuple(value.shape) for name, value in weights.items()}
        now = {name: tuple(value.shape) for name, value in self.parameters.items()}
        changed = sorted(name for name in was | now if was.get(name) != now.get(name))
        if changed:
            first = changed[0]
            raise LLMDiffError(
                f"{self.folder}: its checkpoint has other parameters, {len(changed)} differ: {first} has "
                f"shape {was.get(first, 'none')} there and {now.get(first, 'none')} in this run; use another folder"
            )


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in sections.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): one for key, one in inner.items()}
    return found
