"""Draw the sample pictures of a run: the same prompts and seeds every time."""

import logging
from typing import Any

import torch
from PIL import Image

from llmdiff.drawing.any_pipeline import pictures
from llmdiff.drawing.pictures import Panel, save_png, sheet
from llmdiff.errors import NonFinitePictureError
from llmdiff.training.conditioning import Conditioning
from llmdiff.training.config import TrainConfig

_log = logging.getLogger(__name__)


@torch.no_grad()
def draw_samples(config: TrainConfig, pipe: Any, conditioning: Conditioning, step: int) -> Image.Image | None:
    """Draw the sample prompts with the current weights, save the sheet in OUT/samples and return it.

    A picture that is not finite is a warning, and the result None.
    """
    captions = [f"seed {seed}" for seed in config.watch.seeds]
    try:
        with conditioning.attached(pipe):
            panels = [
                Panel(title=prompt, images=_pictures(config, pipe, prompt), captions=captions)
                for prompt in config.watch.prompts
            ]
    except NonFinitePictureError as error:
        # The adapter may be fine: usually the VAE's decoder overflows, which training does not use.
        _log.warning("no sample pictures of step %d: %s", step, error)
        return None
    picture = sheet(f"{config.out.name}, step {step}", panels)
    save_png(picture, config.out / "samples" / f"step-{step:08d}.png", {"step": step})
    return picture


def _pictures(config: TrainConfig, pipe: Any, prompt: str) -> list[Any]:
    watch, side = config.watch, config.data.resolution_px
    return [
        pictures(
            pipe,
            [prompt],
            num_inference_steps=watch.sample_steps,
            guidance_scale=watch.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            height=side,
            width=side,
            use_resolution_binning=False,  # draw at the training size, not at the nearest size of a list
        )[0]
        for seed in watch.seeds
    ]
