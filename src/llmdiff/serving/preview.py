"""Small pictures of what a pipeline is about to draw, made between its steps."""

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmdiff.errors import NonFinitePictureError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_MAX_SIDE_PX = 256
# Decoding may take no more than this share of the time; large pictures then get fewer previews.
_SHARE = 0.2


class Previewer:
    """Watches one picture come about; asked after every step, it shows something when it costs little."""

    def __init__(self, pipe: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipe = pipe
        self._clock = clock
        self._not_before = clock()
        self._latents: Tensor | None = None

    def after_step(self, timestep: Any, latents: "Tensor") -> bytes | None:
        """Return a preview as a PNG file, None when it is too early for the next one or there is no way.

        Shapes: latents (B, C, h, w); of others, packed ones for example, there is no preview.
        """
        before, self._latents = self._latents, latents
        if before is None or latents.ndim != 4 or self._clock() < self._not_before:
            return None
        began = self._clock()
        try:
            image = _decoded(self._pipe, clean_estimate(self._pipe.scheduler, timestep, before, latents))
        except NonFinitePictureError:
            image = (
                None  # an estimate may overflow where the picture does not; that one is checked at its end
            )
        took = self._clock() - began
        self._not_before = self._clock() + took * (1 - _SHARE) / _SHARE
        return image


def clean_estimate(scheduler: Any, timestep: Any, before: "Tensor", after: "Tensor") -> "Tensor":
    """Return the latents that the denoiser expects at the end, from those before and after one step.

    A DDIM step without noise leads from `before = a x + s e` to `after = a' x + s' e`, with the same clean `x`
    and noise `e`; the two are solved for `x`. Of other schedulers, and of the last step, `after` is returned.

    Shapes: before, after and the result (B, C, h, w).
    Source: Song et al. 2020 (arXiv 2010.02502), equation 12 with sigma = 0.
    """
    previous = int(timestep) - scheduler.config.num_train_timesteps // (scheduler.num_inference_steps or 1)
    if type(scheduler).__name__ != "DDIMScheduler" or previous < 0:
        return after
    # (a, s) of both: clean share and noise share.
    a, a_after = (float(scheduler.alphas_cumprod[at]) ** 0.5 for at in (int(timestep), previous))
    s, s_after = ((1 - share**2) ** 0.5 for share in (a, a_after))
    estimate: Tensor = (s * after - s_after * before) / (a_after * s - a * s_after)
    return estimate


def _decoded(pipe: Any, latents: "Tensor") -> bytes:
    import torch

    config = pipe.vae.config
    scaled = latents[:1] / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    with torch.no_grad():
        pixels = pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]
    image: Image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
