"""Count FLOPs and peak memory of a computation on fake tensors, which have shapes and dtypes but no values."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

# Functions used by our models that autocast computes in float32 on a GPU but not on a CPU.
_FLOAT32_ON_GPU = {
    "layer_norm",
    "group_norm",
    "rms_norm",
    "softmax",
    "norm",
    "vector_norm",
    "exp",
    "pow",
    "rsqrt",
}


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's FLOP counter, extended by the CPU's fused attention.

    A multiply-add counts as 2 FLOPs; elementwise operations count as 0.
    """
    fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    formulas: Any = (sdpa_flop_count, sdpa_backward_flop_count)
    mapping = {
        fused: lambda query, key, value, *rest, **more: formulas[0](query, key, value),
        backward: lambda grad, query, key, value, *rest, **more: formulas[1](grad, query, key, value),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
    """A context that tracks the memory of tensors created inside. Units: `peak_bytes` in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = self._alive = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._known[storage] = True  # existed before, or is counted already
        result = func(*args, **dict(kwargs or {}))
        for storage in _storages(result):
            # Views share the memory of a known tensor.
            if storage not in self._known:
                self._known[storage] = True
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._alive)
        return result

    def _freed(self, size: int) -> None:
        self._alive -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class GpuAutocast(TorchFunctionMode):
    """A context in which the CPU's autocast uses float32 for the same functions as a GPU's, for equal memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (args, dict(kwargs or {}))
        if getattr(func, "__name__", "") in _FLOAT32_ON_GPU:
            given = tree_map(_in_float32, given)
        return func(*given[0], **given[1])


def _in_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
