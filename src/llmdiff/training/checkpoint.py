"""Checkpoints of a training run: safetensors and JSON only, written whole or not at all, with their SHA-256.

FOLDER/checkpoints/step-00001000/    checkpoint.safetensors  checkpoint.json  manifest.json
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmdiff.adapter.manifest import check_manifest, write_manifest
from llmdiff.errors import CorruptWeightsError, LLMDiffError, OutputError
from llmdiff.files import delete_folder, not_writable, sweep, whole_folder

_TENSORS, _STATE = "checkpoint.safetensors", "checkpoint.json"
_NAME = re.compile(r"step-(\d+)")

_log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep_last: int = 2,
) -> None:
    """Write the checkpoint of a step, then delete older ones.

    A process killed at any time leaves at least the older checkpoints intact. The last `keep_last` are kept, and the
    one with the lowest `validation_loss` in its state.

    Raises:
        OutputError: the disk is full or cannot be written; older checkpoints are unchanged.
    """
    target = folder / "checkpoints" / f"step-{step:08d}"
    try:
        with whole_folder(target) as partial:
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, partial / _TENSORS)
            (partial / _STATE).write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
            write_manifest(partial, [_TENSORS, _STATE])
    except (OSError, SafetensorError) as error:
        last = [name for name, _ in checkpoints(folder)]
        kept = f"the one of step {last[-1]} is intact" if last else "there is no older one"
        raise OutputError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error}), {kept}: free disk space, then run "
            "again to resume"
        ) from error
    _prune(folder, step, keep_last)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the last checkpoint's state and tensors, or None if there is none.

    Damaged checkpoints are skipped with a warning.

    Raises:
        CorruptWeightsError: all checkpoints are damaged.
    """
    found = checkpoints(folder)
    for step, place in reversed(found):
        try:
            check_manifest(place, [_TENSORS, _STATE])
        except CorruptWeightsError as error:
            if step == found[0][0]:
                raise
            _log.warning("%s; resuming from the checkpoint before it", error)
            continue
        return _read(place / _STATE), load_file(place / _TENSORS)
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of a run's checkpoints, oldest first; other files are ignored."""
    named = [(_NAME.fullmatch(place.name), place) for place in (folder / "checkpoints").glob("step-*")]
    return sorted((int(name[1]), place) for name, place in named if name is not None and place.is_dir())


def best_checkpoint(folder: Path) -> tuple[float, Path] | None:
    """Return the lowest validation loss and its checkpoint's folder, or None if no checkpoint has one.

    Checkpoints with a damaged state are ignored.
    """
    measured: list[tuple[float, Path]] = []
    for _, place in checkpoints(folder):
        try:
            loss = _read(place / _STATE).get("validation_loss")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(loss, float | int):
            measured.append((loss, place))
    return min(measured, default=None)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Return a context that locks the folder for one run and removes temporary files of killed ones.

    Raises:
        LLMDiffError: another run uses the folder.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(out / ".lock", timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LLMDiffError(
            f"out {out} is in use by another run: wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise not_writable(out, error) from error
    try:
        sweep(out)
        yield
    finally:
        lock.release()


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix.`, without that prefix."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }


def optimizer_parts(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as tensors named `optimizer.INDEX.KEY`, and its plain numbers by the same names."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"optimizer.{index}.{key}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any] | None = None
) -> None:
    """Restore the saved moments; learning rates and other settings stay those of the optimiser."""
    states: dict[int, dict[str, Any]] = {}
    for name, value in (part(tensors, "optimizer") | part(numbers or {}, "optimizer")).items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def _prune(folder: Path, step: int, keep_last: int) -> None:
    found = checkpoints(folder)
    # Checkpoints of later steps were damaged: the run has resumed from an earlier one.
    passed_over = [place for one, place in found if one > step]
    places = [place for one, place in found if one <= step]
    best = best_checkpoint(folder)
    for place in [*places[: -max(1, keep_last)], *passed_over]:
        if best is None or place != best[1] or place in passed_over:
            # Not file by file: a kill would leave a checkpoint that is listed and cannot be read.
            delete_folder(place)
    sweep(folder / "checkpoints")
