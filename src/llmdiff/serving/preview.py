"""Previews of a picture between the denoising steps."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmdiff.drawing.pictures import png_bytes
from llmdiff.errors import NonFinitePictureError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_MAX_SIDE_PX = 256
# The largest share of the time spent on decoding; large pictures have fewer previews.
_SHARE = 0.2


class Previewer:
    """Decodes previews of one picture after denoising steps, as long as that costs little time."""

    def __init__(self, pipe: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipe = pipe
        self._clock = clock
        self._not_before = clock()
        self._latents: Tensor | None = None

    def after_step(self, timestep: Any, latents: "Tensor") -> bytes | None:
        """Return a preview as a PNG file, None if it is too early for the next one or none can be made.

        Shapes: latents (B, C, h, w); other latents, such as packed ones, have no preview.
        """
        before, self._latents = self._latents, latents
        if before is None or latents.ndim != 4 or self._clock() < self._not_before:
            return None
        began = self._clock()
        try:
            image = _decoded(self._pipe, clean_estimate(self._pipe.scheduler, timestep, before, latents))
        except NonFinitePictureError:
            # An estimate may overflow although the picture, which is checked at the end, does not.
            image = None
        took = self._clock() - began
        self._not_before = self._clock() + took * (1 - _SHARE) / _SHARE
        return image


def clean_estimate(scheduler: Any, timestep: Any, before: "Tensor", after: "Tensor") -> "Tensor":
    """Return the denoiser's estimate of the clean latents, from the latents before and after one step.

    A DDIM step without noise leads from `before = a x + s e` to `after = a' x + s' e`, with the same clean `x`
    and noise `e`; solving both gives `x`. For other schedulers, and for the last step, return `after`.

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
    return png_bytes(image, {})
