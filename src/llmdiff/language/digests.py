"""Digests that identify models by their weights and settings instead of their names."""

import hashlib
import json
import threading
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

# Fields of an adapter's configuration that name models and do not change pictures.
_NAMES = ("llm_id", "base_model_id")


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of all weights of a module: names, dtypes, shapes and bits.

    The device does not matter; weights offloaded by accelerate are read from the CPU. About 1.5 GB/s.

    Raises:
        ValueError: a weight is on the meta device and not offloaded.
    """
    digest = hashlib.sha256()
    same: dict[tuple[Any, ...], bytes] = {}
    for name, weight in sorted(module.state_dict().items()):
        if not isinstance(weight, Tensor):  # extra state of quantised layers
            digest.update(f"{name} {weight!r}".encode())
            continue
        tensor = _offloaded(module, name) if weight.is_meta else weight
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Read tied weights once.
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if place not in same:
            same[place] = _bits(tensor)
        digest.update(same[place])
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # The part before it has truncation and padding settings, which depend on the last call.
        rules = backend.to_str().partition('"added_tokens"')[2]
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{type(tokenizer).__name__}\n{rules}\n{special}".encode()).hexdigest()


def llm_digest(llm: Any) -> str:
    """Return the SHA-256 of an LLM: its configuration, weights and tokenizer."""
    said = [config_json(llm.model), _remembered_weights(llm.model), tokenizer_digest(llm.tokenizer)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def adapter_digest(adapter: Any) -> str:
    """Return the SHA-256 of an adapter: its weights, and its configuration without the names of models."""
    config = {name: value for name, value in json.loads(config_json(adapter)).items() if name not in _NAMES}
    said = [json.dumps(config, sort_keys=True), _remembered_weights(adapter)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def pipeline_digest(pipe: Any) -> str:
    """Return the SHA-256 of a diffusers pipeline: its classes, weights, settings and tokenizers.

    The pipeline must have no adapter attached.
    """
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(pipe.components.items()):
        if part is None:
            continue
        digest.update(f"{name} {type(part).__name__} {config_json(part)}".encode())
        if isinstance(part, nn.Module):
            digest.update(weights_digest(part).encode())
        elif hasattr(part, "get_vocab"):
            digest.update(tokenizer_digest(part).encode())
    return digest.hexdigest()


def config_json(part: Any) -> str:
    """Return the configuration of a model or scheduler as JSON, without its path; "{}" if it has none."""
    config = getattr(part, "config", {})
    fields = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    kept = {key: value for key, value in fields.items() if not key.startswith("_")}
    # Library versions and dtype do not identify a model; transformers rewrites them when it saves.
    for key in ("transformers_version", "torch_dtype", "dtype"):
        kept.pop(key, None)
    return json.dumps(kept, sort_keys=True, default=str)


def _bits(tensor: Tensor) -> bytes:
    # As bytes: NumPy has no bfloat16 and no float8.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    bits: Any = flat.view(torch.uint8).numpy()
    return hashlib.sha256(bits).digest()


def _offloaded(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    hook = getattr(module.get_submodule(owner), "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        weights = getattr(one, "weights_map", None)
        if weights is not None and last in weights.keys():  # noqa: SIM118 (accelerate's mapping has no __contains__)
            weight: Tensor = weights[last]
            return weight
    raise ValueError(f"the weight {name} is on the meta device: load it before its digest is taken")


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor: its dtype, shape and bits."""
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + _bits(tensor)).hexdigest()


_Stamp = tuple["ReferenceType[Tensor]", int]
# By model: each tensor with its version counter when the digest was taken, and the digest.
_taken: "WeakKeyDictionary[nn.Module, tuple[list[_Stamp], str]]" = WeakKeyDictionary()
_taking = threading.Lock()


def model_digest(model: Any) -> str:
    """Return the SHA-256 of a model: its class, configuration and weights. The weights' digest is cached."""
    said = [type(model).__name__, config_json(model), _remembered_weights(model)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _remembered_weights(model: Any) -> str:
    tensors = [value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)]
    with _taking:
        stamps, weights = _taken.get(model, ([], ""))
        if len(stamps) != len(tensors) or not all(map(_is_as_it_was, stamps, tensors)):
            weights = weights_digest(model)
            _taken[model] = [(ref(tensor), _version(tensor)) for tensor in tensors], weights
    return weights


def _is_as_it_was(stamp: _Stamp, tensor: Tensor) -> bool:
    return stamp[0]() is tensor and stamp[1] == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
