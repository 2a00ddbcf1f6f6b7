"""Systems that an evaluation compares: whatever turns prompts and seeds into pictures."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BASE, OURS = "base", "llm"
System = Callable[[list[str], list[int]], NDArray[np.uint8]]
"""Prompts and one seed for each => pictures (N, H, W, 3) uint8."""


def pipeline_system(pipe: Any, *, steps: int = 20, guidance_scale: float = 3.0, batch: int = 16) -> System:
    """A system that draws with a diffusers pipeline, with or without an LLM attached to it.

    Every prompt has a generator of its own, so a picture does not depend on which prompts share its batch.
    """
    pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def draw(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        pictures: list[NDArray[np.uint8]] = []
        for start in range(0, len(prompts), batch):
            # On the CPU, so that a seed means the same start on every machine.
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
            images = pipe(
                prompts[start : start + batch],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="np",
            ).images
            pictures.append((np.asarray(images) * 255).round().astype(np.uint8))
        return np.concatenate(pictures)

    return draw


def controller_systems(
    controller: Any,
    *,
    scale: float | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    batch: int = 16,
    device: str = "cpu",
) -> dict[str, System]:
    """The two systems of a controller: its base pipeline (`base`), and the same one with the LLM attached (`llm`).

    `scale` is that of `attach`; None: the adapter's own.

    Raises:
        CorruptWeightsError: the base pipeline cannot be read.
    """
    pipe = controller.load_pipeline(device=device)
    draw = pipeline_system(pipe, steps=steps, guidance_scale=guidance_scale, batch=batch)

    def draw_controlled(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        with controller.attached(pipe, scale):
            return draw(prompts, seeds)

    return {BASE: draw, OURS: draw_controlled}


def weights_digest(module: torch.nn.Module) -> str:
    """Tells one model's weights from another's, so that pictures or scores of the two are not mixed in one folder."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
