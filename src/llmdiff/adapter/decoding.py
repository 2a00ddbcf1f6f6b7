"""What is checked where a picture is decoded: finite numbers, and that the text of an attached LLM was read.

A hook on the VAE's decoder, which every picture goes through, whoever calls the pipeline and in whatever form they
want the picture. It has no state, so that it is copied with the VAE like any other hook.
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
    """Return the handle of the checks on a pipeline's decoder; None where it has none to hold on to."""
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    return decoder.register_forward_hook(_check_decoded) if isinstance(decoder, nn.Module) else None


@contextmanager
def decoding_checked(pipe: Any) -> Iterator[None]:
    """Return a context where pictures that are not finite raise.

    Raises:
        NonFinitePictureError: a picture was decoded that would be black or white where it is no number.
    """
    handle = watch_decoding(pipe)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _check_decoded(decoder: nn.Module, args: tuple[Any, ...], pixels: Any) -> None:
    # Asking a tensor would break the graph of a compiled VAE.
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
    """Return the `LLMEncodePrompt` of the attached pipeline whose own call this decoding belongs to, or None.

    Read off the stack: diffusers tells nobody where a call of a pipeline begins and ends, and a picture that somebody
    decodes by hand is none of ours.
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
