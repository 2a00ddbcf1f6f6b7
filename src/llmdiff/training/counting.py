"""What a computation costs: floating-point operations, bytes read and written, the most memory alive at once.

Everything is counted as the operations come by, so it holds on the meta device, which computes nothing, as for real.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

# What autocast computes in the lower precision, and what in float32, of all that our models call.
_LOWER = {
    "linear",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "matmul",
    "__matmul__",
    "bmm",
    "mm",
    "addmm",
    "baddbmm",
}
_FULL = {
    "layer_norm",
    "group_norm",
    "rms_norm",
    "softmax",
    "mse_loss",
    "norm",
    "vector_norm",
    "exp",
    "pow",
    "rsqrt",
}


class Cost(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
    """A context that counts what runs in it.

    Fields:
        calls: how often an operation of so many FLOPs and bytes ran; views cost nothing and are left out.
        peak_bytes: the most that tensors made inside took at once, without gradients of `parameters`.

    A multiplication with an addition counts as 2 FLOPs; elementwise operations count by their bytes alone. Formulas:
    `torch.utils.flop_counter`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[tuple[int, int]] = Counter()
        self.peak_bytes = 0
        self._alive = self._gradients = self._depth = 0
        self._known: Any = WeakIdKeyDictionary()
        self._parameters: list[Any] = [one for one in parameters if one.requires_grad]
        self._hooks: list[Any] = []

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return sum(flops * count for (flops, _), count in self.calls.items())

    @property
    def bytes(self) -> int:
        """All bytes read and written, with no two operations fused."""
        return sum(size * count for (_, size), count in self.calls.items())

    def __enter__(self) -> "Cost":
        if self._depth == 0:
            self._hooks = [
                parameter.register_post_accumulate_grad_hook(self._made_gradient)
                for parameter in self._parameters
            ]
        self._depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if self._depth == 0:
            for hook in self._hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = getattr(func, "overloadpacket", None)
        if _is_composite(func):
            with self:  # what is only a name for other operations counts as those
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in written:
            self._track(tensor)
        if getattr(func, "is_view", False):
            return result
        formula = flop_registry.get(packet)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
        self.calls[flops, sum(map(_size, read)) + sum(map(_size, written))] += 1
        return result

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self._alive += size
        weakref.finalize(storage, self._freed, size)
        self.peak_bytes = max(self.peak_bytes, self._alive - self._gradients)

    def _freed(self, size: int) -> None:
        self._alive -= size

    def _made_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._gradients += _size(parameter.grad)


class LikeGpu(TorchFunctionMode):
    """A context in which the meta device takes the steps that a GPU would: fused attention, and autocast to `dtype`."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        attention = name == "scaled_dot_product_attention"
        if self.dtype is not None and (attention or name in _LOWER or name in _FULL):
            wanted = torch.float32 if name in _FULL else self.dtype
            args, kwargs = tree_map(lambda leaf: _cast(leaf, wanted), (args, kwargs))
        return _attention(*args, **kwargs) if attention else func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as the memory-efficient kernel computes it: queries times keys is never stored."""
    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    bias = None
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        bias = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device).expand(shape)
    kernel: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    result: Tensor = kernel(query, key, value, bias, True, 0.0, is_causal, scale=scale)[0]
    return result


@cache
def _is_composite(func: Any) -> bool:
    implicit = torch._C.DispatchKey.CompositeImplicitAutograd
    return (
        isinstance(func, torch._ops.OpOverload)
        and func.overloadpacket not in flop_registry
        and func.has_kernel_for_dispatch_key(implicit)
    )


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _size(tensor: Tensor) -> int:
    # An expanded tensor is read from the little memory that it has.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
