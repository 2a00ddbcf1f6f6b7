"""The embedded default's adapter, all else frozen: trained from text, then with the base's own objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.installation import install
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.score_groups import encode_groups, sum_groups
from llmdiff.openmoji.dataset import SceneData
from llmdiff.openmoji.denoiser import create_scheduler
from llmdiff.openmoji.presets import Preset
from llmdiff.training.bank import Encode, EncodingBank, GroupBank, in_batches
from llmdiff.training.loop import LoopConfig, StepPart, train
from llmdiff.training.objective import Objective
from llmdiff.training.optimizers import adapter_lr_scale
from llmdiff.training.warm_start import Encoded, draw_queries, warm_start
from llmdiff.types import TextEncoding

_GAIN_CAPTIONS, _QUERY_CAPTIONS = 1_500, 256


@dataclass(frozen=True, kw_only=True)
class CaptionedScenes:
    """Captions with the scenes they were written for; the last caption is the empty one, for guidance."""

    captions: tuple[str, ...]
    scenes: np.ndarray

    @classmethod
    def draw(cls, data: SceneData, count: int, seed: int) -> "CaptionedScenes":
        """Return captions of `count` scenes drawn at random, and the empty caption as the last."""
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
    """Trains an adapter that reads an LLM's blocks; returns nothing.

    First its gains from text alone, on a few captions whose scores are kept block by block; then, gains frozen, on
    many captions whose encodings are summed once.

    Scores per block of every caption would not fit: 1 MB a caption for SmolLM2, 33 MB for a model of 7 B.
    """
    context: ContextEncoding | None = adapter.context
    assert context is not None, "this adapter has no context encoding to learn gains for"
    captioned = CaptionedScenes.draw(data, preset.adapter_captions, preset.seed)
    few = CaptionedScenes(
        captions=(*captioned.captions[: min(_GAIN_CAPTIONS, preset.adapter_captions)], ""),
        scenes=captioned.scenes,
    )

    @cache  # on the first step: a finished run that only loads its weights encodes nothing
    def bank() -> GroupBank:
        return GroupBank(
            encode_groups(context, llm, part, groups=context.num_blocks)
            for part in in_batches(few.captions, batch=16, title="scores")
        )

    def with_gains(indices: Sequence[int], generator: torch.Generator) -> TextEncoding:
        grouped = bank().batch(indices)
        states = sum_groups(context, grouped, generator=generator)
        return TextEncoding(states=states, token_mask=grouped.token_mask)

    steps = preset.adapter_gain_steps
    _warm_start(preset, pipe, adapter, few, with_gains, folder / "gains", steps, "adapter, gains")
    context.requires_grad_(False)
    encode: Encode = lambda part: context.encode(llm, part)  # noqa: E731
    train_adapter_on(preset, data, pipe, adapter, captioned, encode, folder, noise=context.noised)


def train_adapter_on(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    adapter: LLMDiffAdapter,
    captioned: CaptionedScenes,
    encode: Encode,
    folder: Path,
    *,
    noise: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Trains an adapter on encodings that do not change, first from text, then on pictures; returns nothing."""

    @cache  # as above
    @torch.no_grad()
    def bank() -> EncodingBank:
        return EncodingBank(
            encode(part) for part in in_batches(captioned.captions, batch=32, title="encodings")
        )

    def fixed(indices: Sequence[int], generator: torch.Generator) -> TextEncoding:
        encoding = bank().batch(indices)
        if noise is None:
            return encoding
        states = noise(encoding.states, encoding.token_mask, generator)
        return TextEncoding(states=states, token_mask=encoding.token_mask)

    steps = preset.adapter_warm_steps
    _warm_start(preset, pipe, adapter, captioned, fixed, folder / "warm", steps, "adapter, from text")
    _train(preset, data, pipe, adapter, captioned, fixed, folder / "main", preset.adapter_steps, "adapter")


def _warm_start(
    preset: Preset,
    pipe: StableDiffusionPipeline,
    adapter: LLMDiffAdapter,
    captioned: CaptionedScenes,
    encoded: Encoded,
    folder: Path,
    steps: int,
    title: str,
) -> None:
    count = len(captioned.captions) - 1
    drawn = captioned.captions[: min(_QUERY_CAPTIONS, count)]
    warm_start(
        pipe,
        adapter,
        captioned.captions,
        encoded,
        cache(lambda: draw_queries(pipe, drawn, seed=preset.seed)),
        _loop(preset, steps, ema_horizon=100),
        folder,
        batch_size=preset.adapter_batch,
        choose=lambda rng: captioned.batch(preset.adapter_batch, preset.caption_dropout, rng, count)[
            0
        ].tolist(),
        title=title,
        **_rates(preset),
    )


def _train(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    adapter: LLMDiffAdapter,
    captioned: CaptionedScenes,
    encoded: Encoded,
    folder: Path,
    steps: int,
    title: str,
) -> None:
    unet = pipe.unet.requires_grad_(False).eval()
    device, objective = unet.device, Objective.of(create_scheduler())
    count = len(captioned.captions) - 1
    branches = [cast(CrossAttentionBranch, branch) for branch in adapter.branches.values()]

    def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        rng = part.rng(preset.seed, 10)
        texts, scenes = captioned.batch(preset.adapter_batch, preset.caption_dropout, rng, count)
        states, _ = adapter.condition(encoded(texts.tolist(), part.generator))
        latents = data.latents[scenes].float().to(device)
        gates = torch.stack([torch.stack(branch.gates()) for branch in branches]).detach().mean(0)
        figures = {"gate_pretrained": float(gates[0]), "gate_new": float(gates[1])}
        noised = objective.noised(latents, part.generator)
        noisy = noised.latents.contiguous(memory_format=torch.channels_last)
        output = unet(noisy, noised.timesteps, states.to(device), return_dict=False)[0]
        return objective.loss(output, noised), figures | objective.figures(output, noised)

    with install(unet, adapter):
        train(
            {"adapter": adapter.train()},
            step_loss,
            _loop(preset, steps, ema_horizon=300),
            folder,
            title=title,
            **_rates(preset),
        )
    adapter.eval()


def _loop(preset: Preset, steps: int, *, ema_horizon: int) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        learning_rate=preset.adapter_lr,
        seed=preset.seed,
        ema_horizon=ema_horizon,
        lr_schedule="cosine",
    )


def _rates(preset: Preset) -> dict[str, Any]:
    return {
        "lr_scale": adapter_lr_scale(preset.adapter_scalar_lr / preset.adapter_lr),
        "muon": lambda name: preset.adapter_muon and ".branches." in name,
    }
