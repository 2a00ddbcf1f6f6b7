"""Systems of an evaluation: functions from prompts and seeds to pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmdiff.adapter.decoding import decoding_checked
from llmdiff.adapter.limits import check_steps
from llmdiff.adapter.settings import Control, as_control
from llmdiff.drawing.any_pipeline import pictures
from llmdiff.drawing.models import Models, load

BASE, OURS = "base", "llm"
System = Callable[[list[str], list[int]], NDArray[np.uint8]]
"""Prompts and one seed for each => pictures (N, H, W, 3) uint8."""


def pipeline_system(pipe: Any, *, steps: int = 20, guidance_scale: float = 3.0, batch: int = 16) -> System:
    """Return a system that draws with a diffusers pipeline, with or without an LLM attached to it.

    Every prompt has its own generator, so a picture does not depend on its batch. A picture that is not finite raises
    an error.

    Raises:
        ConfigError: the pipeline's scheduler has fewer steps.
    """
    check_steps(pipe, steps)
    pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def draw(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        drawn: list[NDArray[np.uint8]] = []
        for start in range(0, len(prompts), batch):
            # On the CPU, so that a seed gives the same noise on every machine.
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
            with decoding_checked(pipe):
                images = pictures(
                    pipe,
                    prompts[start : start + batch],
                    num_inference_steps=steps,
                    guidance_scale=guidance_scale,
                    generator=generators,
                )
            drawn += [np.asarray(image) for image in images]
        return np.stack(drawn)

    return draw


def models_systems(models: Models, *, steps: int = 20, guidance_scale: float = 3.0) -> dict[str, System]:
    """Load the models and return their two systems, see `controller_systems`.

    Raises:
        LLMDiffError: a model is missing, damaged or does not fit.
    """
    controller, pipe = load(models)
    return controller_systems(
        controller, pipe, control=models.control, steps=steps, guidance_scale=guidance_scale
    )


def controller_systems(
    controller: Any,
    pipe: Any,
    *,
    control: Control | float | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> dict[str, System]:
    """Return the two systems of a controller: its base pipeline (`base`) and the one with the LLM attached (`llm`).

    `control` is that of `attach`. Where it weighs words, the base reads the prompts without the weights.
    """
    draw = pipeline_system(pipe, steps=steps, guidance_scale=guidance_scale, batch=batch)
    ours = as_control(control, {})

    def controlled(control: Control) -> System:
        def draw_attached(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            with controller.attached(pipe, control):
                return draw(prompts, seeds)

        return draw_attached

    return {BASE: controlled(ours.base), OURS: controlled(ours)}
