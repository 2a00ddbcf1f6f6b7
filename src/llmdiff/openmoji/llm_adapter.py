"""Training on the embedded default's scenes: everything frozen but the adapter, or any rival of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.errors import ConfigError
from llmdiff.language.llm import DecoderLLM
from llmdiff.openmoji.dataset import SceneData
from llmdiff.openmoji.denoiser import create_scheduler
from llmdiff.openmoji.presets import Preset
from llmdiff.rivals.conditioning import Conditioning, Stage
from llmdiff.rivals.two_branch import AdapterConditioning
from llmdiff.training.bank import BlockBank, EncodingBank, TextBank, in_batches
from llmdiff.training.loop import LoopConfig, StepPart, train
from llmdiff.training.objective import Objective
from llmdiff.training.optimizers import adapter_lr_scale

_GAIN_CAPTIONS = 1_500


@dataclass(frozen=True, kw_only=True)
class CaptionedScenes:
    """Captions with the scenes they were written for; the last caption is the empty one, for guidance."""

    captions: tuple[str, ...]
    scenes: np.ndarray

    @classmethod
    def draw(cls, data: SceneData, count: int, seed: int) -> "CaptionedScenes":
        rng = np.random.default_rng([seed, 9])
        scenes = rng.permutation(len(data.contents))[:count]
        return cls(captions=(*data.captions(scenes, rng), ""), scenes=scenes)

    def batch(
        self, size: int, dropout: float, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the captions (some replaced by the empty one, index `count`) and of their scenes."""
        chosen = rng.integers(count, size=size)
        kept = rng.random(size) >= dropout
        return np.where(kept, chosen, count), self.scenes[chosen]


def create_adapter(
    preset: Preset, data: SceneData, pipe: StableDiffusionPipeline, llm: DecoderLLM
) -> LLMDiffAdapter:
    """An untrained adapter of the preset's kind, its scales set by training captions."""
    torch.manual_seed(preset.seed + 3)
    captions = CaptionedScenes.draw(data, 256, preset.seed).captions[:-1]
    adapter: LLMDiffAdapter = LLMDiffAdapter.create(
        pipe,
        llm_id=llm.id,
        hidden_size=llm.hidden_size,
        num_blocks=llm.num_blocks,
        encoding=preset.adapter_encoding,
        lone=preset.adapter_lone,
        template=preset.adapter_template,
        base_model_id="openmoji",
        sample_prompts=captions[:16],
    )
    if adapter.context is not None:
        adapter.context.calibrate(llm, captions)
    return adapter


def train_llm_adapter(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    llm: DecoderLLM,
    adapter: LLMDiffAdapter,
    folder: Path,
) -> None:
    """Trains an adapter that reads an LLM's blocks: first with its gains, on a few captions whose block updates are
    kept; then, gains frozen, on many captions whose encodings are summed once.

    Per-block updates of every caption would not fit: 1 MB a caption for SmolLM2, 33 MB for a model of 7 B.
    """
    train_conditioning(preset, data, pipe, AdapterConditioning(adapter, llm), folder)


def train_conditioning(
    preset: Preset, data: SceneData, pipe: StableDiffusionPipeline, conditioning: Conditioning, folder: Path
) -> int:
    """How many numbers were trained. Trains any way to condition, stage by stage; each caption is read once.

    Every way gets the same captions, batches, noise and steps: `adapter_gain_steps` plus `adapter_steps`, in one
    stage or in two.
    """
    captioned = CaptionedScenes.draw(data, preset.adapter_captions, preset.seed)
    few = CaptionedScenes(
        captions=(*captioned.captions[: min(_GAIN_CAPTIONS, preset.adapter_captions)], ""),
        scenes=captioned.scenes,
    )
    sizes: dict[str, int] = {}
    left = preset.adapter_gain_steps + preset.adapter_steps
    for stage in conditioning.stages():
        sizes |= conditioning.trainable()
        steps = preset.adapter_gain_steps if stage.name == "gains" else left
        left -= steps
        part = few if stage.name == "gains" else captioned
        _train(preset, data, pipe, conditioning, stage, part, folder / stage.name, steps)
    conditioning.train(False)
    return sum(sizes.values())


@torch.no_grad()
def held_out_loss(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    conditioning: Conditioning,
    *,
    batches: int,
) -> float:
    """The mean loss on scenes that no adapter is trained on, with the same noise for every way to condition."""
    conditioning.train(False)
    *_, stage = conditioning.stages()
    unet, objective = pipe.unet, Objective.of(create_scheduler())
    rng = np.random.default_rng([preset.seed, 12])
    taken = CaptionedScenes.draw(data, preset.adapter_captions, preset.seed).scenes
    held_out = np.setdiff1d(np.arange(len(data.contents)), taken)
    if not len(held_out):
        raise ConfigError(
            f"adapter_captions is {preset.adapter_captions}, and there are {len(data.contents)} scenes: leave some "
            "for measuring"
        )
    losses: list[float] = []
    with conditioning.installed(unet):
        for index in range(batches):
            generator = torch.Generator().manual_seed(index)
            scenes = rng.choice(held_out, preset.adapter_batch)
            noised = objective.noised(data.latents[scenes].float().to(unet.device), generator)
            states = stage.condition(stage.read(data.captions(scenes, rng)), None).to(unet.device)
            output = unet(noised.latents, noised.timesteps, states, return_dict=False)[0]
            losses.append(float(objective.loss(output, noised)))
    return float(np.mean(losses))


def _train(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    conditioning: Conditioning,
    stage: Stage,
    captioned: CaptionedScenes,
    folder: Path,
    steps: int,
) -> None:
    unet = pipe.unet.requires_grad_(False).eval()
    device, objective = unet.device, Objective.of(create_scheduler())
    count = len(captioned.captions) - 1

    @cache  # on the first step: a finished run that only loads its weights encodes nothing
    @torch.no_grad()
    def bank() -> Any:
        return _bank(stage, captioned.captions)

    def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        rng = part.rng(preset.seed, 10)
        texts, scenes = captioned.batch(preset.adapter_batch, preset.caption_dropout, rng, count)
        states = stage.condition(bank().batch(texts.tolist()), part.generator)
        latents = data.latents[scenes].float().to(device)
        figures = conditioning.figures()
        noised = objective.noised(latents, part.generator)
        noisy = noised.latents.contiguous(memory_format=torch.channels_last)
        output = unet(noisy, noised.timesteps, states.to(device), return_dict=False)[0]
        return objective.loss(output, noised), {**figures, **objective.figures(output, noised)}

    config = LoopConfig(
        steps=steps, learning_rate=preset.adapter_lr, seed=preset.seed, ema_horizon=300, lr_schedule="cosine"
    )
    scalar_share = preset.adapter_scalar_lr / preset.adapter_lr
    conditioning.train()
    with conditioning.installed(unet):
        train(
            conditioning.modules,
            step_loss,
            config,
            folder,
            title=stage.name,
            lr_scale=adapter_lr_scale(scalar_share),
            muon=lambda name: preset.adapter_muon and conditioning.is_hidden(name),
        )


def _bank(stage: Stage, captions: Sequence[str]) -> Any:
    """What the stage reads of all captions; `.batch(indices)` hands it out."""
    if stage.keeps == "texts":
        return TextBank(captions)
    size = 16 if stage.name == "gains" else 32
    parts = (stage.read(part) for part in in_batches(captions, batch=size, title=f"reading for {stage.name}"))
    return BlockBank(parts) if stage.keeps == "blocks" else EncodingBank(parts)
