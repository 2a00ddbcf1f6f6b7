"""The weights of a pretrained layer as numbers, however they are stored: plain, packed or offloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.errors import UnsupportedPipelineError, first_line

_Result = TypeVar("_Result")
# The identity goes through a layer in parts: of wide layers, all of it would be as large as the denoiser.
_ROWS = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def weight_and_bias(layer: Any, *, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the weight (out, in) and bias (out), or None, of a linear layer; a LoRA on it is left out.

    A plain layer's are its own tensors. Those of a layer that is packed (bitsandbytes, GGUF, torchao and others) or
    offloaded cannot be read off it, so the identity goes through the layer: x W^T is W^T for x = I, and x W^T + b is
    b for x = 0. `dtype` is what the denoiser computes in; `name` is the layer's, for the error.

    Raises:
        UnsupportedPipelineError: the layer can be neither read nor called.
    """
    layer = getattr(layer, "base_layer", layer)
    if _is_plain(layer):
        return layer.weight, layer.bias
    # torch multiplies by weights that are nowhere without a word; only a hook of offloading fetches them.
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
    """Return what `call` makes of the states, in the first of `dtypes` (or of the usual ones) that it takes.

    Raises:
        UnsupportedPipelineError: it takes none of them.
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
    """Return the device that a module's weights are on; of offloaded ones, the device that they are brought to."""
    device = next(module.parameters()).device
    return torch.device(pipe._execution_device) if device.type == "meta" else device


def _is_plain(layer: Any) -> bool:
    return (
        type(layer).forward is nn.Linear.forward
        and "forward" not in vars(layer)  # hooks of accelerate's and diffusers' offloading lie there
        and type(layer.weight) in (nn.Parameter, Tensor)
        and layer.weight.is_floating_point()
        and not layer.weight.is_meta
    )


@contextmanager
def _without_bias(layer: nn.Module) -> Iterator[None]:
    """Leave the bias out for a while: added and taken off again, it would round the weight away."""
    bias = layer._parameters.get("bias")
    if bias is not None:
        layer._parameters["bias"] = None
    try:
        yield
    finally:
        if bias is not None:
            layer._parameters["bias"] = bias
