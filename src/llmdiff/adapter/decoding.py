"""Checks when a picture is decoded: the pixels are finite, and the text of an attached LLM was read.

A forward hook on the VAE's decoder, which every picture passes whatever the pipeline's caller and `output_type`.
The hook has no state, so that it is copied with the VAE like any other hook.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmdiff.errors import NonFinitePictureError

_SAFE = "draw in float32 or bfloat16 (dtype)"


def watch_decoding(pipe: Any) -> RemovableHandle | None:
    """Return the handle of the hook on a pipeline's decoder; None if the pipeline has no decoder module."""
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    return decoder.register_forward_hook(_check_decoded) if isinstance(decoder, nn.Module) else None


@contextmanager
def decoding_checked(pipe: Any) -> Iterator[None]:
    """Return a context in which decoding a picture that is not finite raises a NonFinitePictureError."""
    handle = watch_decoding(pipe)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _check_decoded(decoder: nn.Module, args: tuple[Any, ...], pixels: Any) -> None:
    # Reading a tensor's values would break the graph of a compiled VAE.
    if torch.compiler.is_compiling():
        return
    _check_finite(args, pixels)
    attached = _attached_that_draws()
    if attached is not None:
        attached.check_read()


def _check_finite(args: tuple[Any, ...], pixels: Any) -> None:
    if not isinstance(pixels, Tensor) or bool(torch.isfinite(pixels).all()):
        return
    latents = next((given for given in args if isinstance(given, Tensor)), pixels)
    dtype = str(pixels.dtype).removeprefix("torch.")
    if not torch.isfinite(latents).all():
        remedy = (
            _SAFE
            if pixels.dtype == torch.float16
            else f"check the guidance scale and the pipeline's weights, or {_SAFE}"
        )
        raise NonFinitePictureError(
            f"the picture is not finite: the denoiser gave NaN or infinity, decoded in {dtype}; {remedy}"
        )
    raise NonFinitePictureError(
        f"the picture is not finite: the VAE overflows in {dtype}; {_SAFE}, or use a VAE that is safe in half "
        "precision (one with force_upcast in its config, where the pipeline obeys it)"
    )


def _attached_that_draws() -> Any:
    """Return the `LLMEncodePrompt` of the attached pipeline whose call this decoding belongs to, or None.

    Found on the call stack: diffusers has no hook for the start and end of a pipeline call, and a picture that is
    decoded outside of one must not be checked.
    """
    from llmdiff.adapter.prompts import LLMEncodePrompt

    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            given = getattr(frame.f_locals.get("self"), "__dict__", {}).get("encode_prompt")
            if isinstance(given, LLMEncodePrompt):
                return given
        frame = frame.f_back  # type: ignore[assignment]
    return None
