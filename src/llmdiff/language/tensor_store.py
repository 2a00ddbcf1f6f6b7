"""Tensors found by name, in safetensors files that only ever grow in number."""

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmdiff.errors import CorruptWeightsError, OutputError
from llmdiff.files import whole_file


class TensorStore:
    """Named tensors of one folder.

    `put` adds a file whole or not at all, so a killed writer loses what it had not put yet, and several processes
    may write at once. Files are memory-mapped: what is read is what takes memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._place: dict[str, Path] = {}
        self._read_new_files()

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self._place)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names that are not there, in order, each once."""
        self._read_new_files()
        return [name for name in dict.fromkeys(names) if name not in self._place]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write these tensors as one file; returns nothing.

        Raises:
            OutputError: the disk is full or cannot be written; what was there before is as it was.
        """
        if not tensors:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            with whole_file(path) as partial:
                save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{self.folder} cannot be written ({error}): make room, then run again to go on"
            ) from error
        self._open(path)

    def get(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            KeyError: there is none of this name.
        """
        tensor: Tensor = self._files[self._place[name]].get_tensor(name)
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
        except SafetensorError as error:
            raise CorruptWeightsError(f"{path} is damaged ({error}): delete it and prepare again") from error
        self._files[path] = file
        self._place.update(dict.fromkeys(file.keys(), path))
