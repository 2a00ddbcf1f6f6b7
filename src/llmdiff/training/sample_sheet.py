"""What a run has come to, as pictures of the same prompts from the same seeds."""

from typing import Any

import torch
from PIL import Image

from llmdiff.drawing.any_pipeline import pictures
from llmdiff.drawing.pictures import Panel, sheet
from llmdiff.training.config import TrainConfig


def sample_sheet(config: TrainConfig, pipe: Any, *, title: str) -> Image.Image:
    """Return one picture with all of the run's sample prompts, drawn by a pipeline that is conditioned already."""
    captions = [f"seed {seed}" for seed in config.watch.seeds]
    panels = [
        Panel(title=prompt, images=_pictures(config, pipe, prompt), captions=captions)
        for prompt in config.watch.prompts
    ]
    return sheet(title, panels)


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
            use_resolution_binning=False,  # the size that is trained on, not the nearest of a list
        )[0]
        for seed in watch.seeds
    ]
