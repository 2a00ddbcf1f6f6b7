"""Digests of tensors, models and tokenizers: whether something is the same, whatever its name and place."""

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

_Stamp = tuple["ReferenceType[Tensor]", int]
# By model: each tensor with its version counter when the digest was taken, and the digest.
_taken: "WeakKeyDictionary[nn.Module, tuple[list[_Stamp], str]]" = WeakKeyDictionary()
_taking = threading.Lock()
# What a configuration says of where a model came from and not of what it computes.
_ORIGINS = (
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "_diffusers_version",
    "_commit_hash",
)


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and numbers in hexadecimal."""
    digest = sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.is_meta:  # without numbers
        return digest.hexdigest()
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: nn.Module, state: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of all that a model computes with: its configuration and every weight and buffer.

    A model whose weights have not changed since is not read again. `state` is what `state_dict(keep_vars=True)` would
    give, where the weights are kept elsewhere than in the model.
    """
    named = model.state_dict(keep_vars=True) if state is None else state
    # A packed layer has plain numbers and texts among its tensors.
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    with _taking:
        stamps, digest = _taken.get(model, ([], ""))
        if len(stamps) != len(tensors) or not all(map(_is_as_it_was, stamps, tensors.values())):
            config: Any = getattr(model, "config", {})
            settings = dict(config.to_dict() if hasattr(config, "to_dict") else config)
            told = {name: value for name, value in settings.items() if name not in _ORIGINS}
            whole = sha256(json.dumps([type(model).__name__, told], sort_keys=True, default=str).encode())
            # hashlib lets other threads run meanwhile.
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for name, one in zip(tensors, pool.map(tensor_digest, tensors.values()), strict=True):
                    whole.update(f"{name} {one} ".encode())
            digest = whole.hexdigest()
            _taken[model] = [(ref(value), _version(value)) for value in tensors.values()], digest
    return digest


def _is_as_it_was(stamp: "_Stamp", tensor: Tensor) -> bool:
    return stamp[0]() is tensor and stamp[1] == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of all that a tokenizer makes tokens with."""
    told = [type(tokenizer).__name__, {name: str(one) for name, one in tokenizer.special_tokens_map.items()}]
    digest = sha256(json.dumps(told, sort_keys=True).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # What stands before is how the last call padded and cut.
        digest.update(backend.to_str().partition('"added_tokens":')[2].encode())
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(f"{path.name} {sha256(path.read_bytes()).hexdigest()} ".encode())
    return digest.hexdigest()
