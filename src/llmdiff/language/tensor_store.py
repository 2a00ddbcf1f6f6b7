"""A disk store of named tensors in safetensors files that are only added, never changed."""

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmdiff.errors import CorruptWeightsError, OutputError, first_line
from llmdiff.files import IDLE_S, sweep, whole_file
from llmdiff.language.digests import tensor_digest


class TensorStore:
    """Named tensors of one folder. Each tensor's SHA-256 is in the file's header and is checked on every read.

    `put` adds a file whole or not at all, so a killed process loses only tensors that it has not put yet, and several
    processes may write at once. Files are memory-mapped: only tensors that are read take memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._place: dict[str, Path] = {}
        self._digests: dict[str, str] = {}
        sweep(folder, idle_s=IDLE_S)
        self._read_new_files()

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self._place)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names that are not in the store, in order, without duplicates."""
        self._read_new_files()
        return [name for name in dict.fromkeys(names) if name not in self._place]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write these tensors as one file.

        Raises:
            OutputError: the disk is full or cannot be written; earlier files are unchanged.
        """
        if not tensors:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            with whole_file(path) as partial:
                kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
                digests = {name: tensor_digest(tensor) for name, tensor in kept.items()}
                save_file(kept, partial, metadata=digests)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{self.folder} cannot be written ({error}): free disk space, then run again to continue"
            ) from error
        self._open(path)

    def get(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            KeyError: the store has no tensor of this name.
            CorruptWeightsError: the tensor differs from its SHA-256.
        """
        path = self._place[name]
        tensor: Tensor = self._files[path].get_tensor(name)
        if tensor_digest(tensor) != self._digests[name]:
            raise _damaged(path, f"{name} differs from its SHA-256")
        return tensor

    def _read_new_files(self) -> None:
        if not self.folder.is_dir():
            return
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            if path.suffix == ".safetensors" and path not in self._files:
                self._open(path)

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            names, digests = file.keys(), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise _damaged(path, first_line(error)) from error
        if set(names) != set(digests):
            raise _damaged(path, "its tensors and its SHA-256 sums have different names")
        self._files[path] = file
        self._place.update(dict.fromkeys(names, path))
        self._digests.update(digests)


def _damaged(path: Path, reason: str) -> CorruptWeightsError:
    return CorruptWeightsError(f"{path} is damaged ({reason}): delete it and prepare again")
