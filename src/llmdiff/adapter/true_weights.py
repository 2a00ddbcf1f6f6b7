"""Read the weights of a pretrained layer, whether plain, quantised or offloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.errors import UnsupportedPipelineError, first_line

_Result = TypeVar("_Result")
# Rows of the identity per call: a whole identity matrix would be too large for wide layers.
_ROWS = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def weight_and_bias(layer: Any, *, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the weight (out, in) and bias (out), or None, of a linear layer, without a LoRA on it.

    The tensors of a plain layer are returned as they are. Those of a quantised (bitsandbytes, GGUF, torchao and
    others) or offloaded layer are not directly readable, so the identity is passed through the layer: x W^T = W^T
    for x = I, and x W^T + b = b for x = 0. `dtype` is the denoiser's dtype; `name` is used in the error.

    Raises:
        UnsupportedPipelineError: the layer can be neither read nor called.
    """
    layer = getattr(layer, "base_layer", layer)
    if _is_plain(layer):
        return layer.weight, layer.bias
    # torch computes with meta tensors without an error; only an offloading hook loads the real weights.
    if not isinstance(layer.weight, Tensor) or (layer.weight.is_meta and "forward" not in vars(layer)):
        raise UnsupportedPipelineError(
            f"the denoiser's layer {name} is a {type(layer).__name__} whose weight cannot be read: use the "
            "pipeline unpacked, with all of its weights loaded"
        )
    device = torch.device("cpu") if layer.weight.is_meta else layer.weight.device
    dtypes = [getattr(layer, "compute_dtype", None), layer.weight.dtype, dtype]

    def through(given: Tensor) -> Tensor:
        def call(states: Tensor) -> Tensor:
            result: Tensor = layer(states)
            if not torch.isfinite(result).all():
                raise ValueError(f"its output in {states.dtype} is not finite")
            return result

        return in_accepted_dtype(call, given.to(device), dtypes, name=name)

    bias = None if layer.bias is None else through(torch.zeros(1, layer.in_features))[0]
    rows = []
    with _without_bias(layer):
        for start in range(0, layer.in_features, _ROWS):
            places = torch.arange(start, min(start + _ROWS, layer.in_features))
            rows.append(through(F.one_hot(places, layer.in_features)))
    return torch.cat(rows).T, bias


def in_accepted_dtype(
    call: Callable[[Tensor], _Result], states: Tensor, dtypes: Any, *, name: str
) -> _Result:
    """Return `call(states)` in the first of `dtypes`, or else of the common ones, that it accepts.

    Raises:
        UnsupportedPipelineError: it accepts none of them.
    """
    wanted = [one for one in dtypes if one is not None and one.is_floating_point and one.itemsize > 1]
    errors = []
    for dtype in dict.fromkeys([*wanted, *_DTYPES]):
        try:
            return call(states.to(dtype))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
            errors.append(error)
    raise UnsupportedPipelineError(
        f"the denoiser's layer {name} is packed or offloaded in a way that a new adapter cannot start from "
        f"({first_line(errors[0])}): create the adapter from the unpacked pipeline; it attaches to the packed one"
    ) from errors[0]


def place_of(module: nn.Module, pipe: Any) -> torch.device:
    """Return the device of a module's weights; for offloaded ones, the execution device."""
    device = next(module.parameters()).device
    return torch.device(pipe._execution_device) if device.type == "meta" else device


def _is_plain(layer: Any) -> bool:
    return (
        type(layer).forward is nn.Linear.forward
        and "forward" not in vars(layer)  # set by the offloading hooks of accelerate and diffusers
        and type(layer.weight) in (nn.Parameter, Tensor)
        and layer.weight.is_floating_point()
        and not layer.weight.is_meta
    )


@contextmanager
def _without_bias(layer: nn.Module) -> Iterator[None]:
    """Return a context without the layer's bias: adding and subtracting it would lose precision."""
    bias = layer._parameters.get("bias")
    if bias is not None:
        layer._parameters["bias"] = None
    try:
        yield
    finally:
        if bias is not None:
            layer._parameters["bias"] = bias
