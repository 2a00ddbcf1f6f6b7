"""What a run has come to, as pictures of the same prompts from the same seeds."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, detach
from llmdiff.drawing.pictures import Panel, sheet
from llmdiff.training.config import TrainConfig
from llmdiff.training.prepare import Parts


def sample_sheet(config: TrainConfig, parts: Parts, *, title: str) -> Image.Image:
    """Return one picture with all of the run's sample prompts, drawn by a denoiser that carries no adapter now."""
    # A copy draws: attaching may move an adapter to the pipeline's device and dtype.
    twin = adapter_with(parts.adapter, adapter_tensors(parts.adapter))
    attach(parts.pipe, parts.llm, twin)
    try:
        captions = [f"seed {seed}" for seed in config.watch.seeds]
        panels = [
            Panel(title=prompt, images=_pictures(config, parts.pipe, prompt), captions=captions)
            for prompt in config.watch.prompts
        ]
    finally:
        detach(parts.pipe)
    return sheet(title, panels)


def adapter_tensors(adapter: LLMDiffAdapter) -> dict[str, Tensor]:
    """Return an adapter's parameters and buffers as they are; `state_dict` would take FSDP's whole ones apart again."""
    return dict(adapter.named_parameters()) | dict(adapter.named_buffers())


def adapter_with(adapter: LLMDiffAdapter, state: Mapping[str, Tensor]) -> LLMDiffAdapter:
    """Return an adapter of the same configuration with copies of these tensors, in eval mode."""
    make: Any = LLMDiffAdapter
    device = next(iter(state.values())).device
    config = {name: value for name, value in adapter.config.items() if not name.startswith("_")}
    twin: LLMDiffAdapter = make(**config).to(device)
    twin.load_state_dict({name: value.detach() for name, value in state.items()})
    twin.eval()
    return twin


def _pictures(config: TrainConfig, pipe: Any, prompt: str) -> list[Any]:
    watch, side = config.watch, config.data.resolution_px
    return [
        pipe(
            prompt,
            num_inference_steps=watch.sample_steps,
            guidance_scale=watch.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            height=side,
            width=side,
        ).images[0]
        for seed in watch.seeds
    ]
