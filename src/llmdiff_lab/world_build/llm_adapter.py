"""Training on the embedded default's scenes: everything frozen but the adapter, or any rival of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.errors import ConfigError
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.bank import EncodingBank, GroupBank, TextBank, by_length, in_batches
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.objective import Objective
from llmdiff.training.optimizers import adapter_lr_scale
from llmdiff.training.warm_start import warm_start
from llmdiff_lab.rivals.conditioning import Conditioning, Stage
from llmdiff_lab.rivals.two_branch import AdapterConditioning
from llmdiff_lab.world_build.captioned import CaptionedScenes, Teacher
from llmdiff_lab.world_build.dataset import SceneData
from llmdiff_lab.world_build.denoiser import create_scheduler
from llmdiff_lab.world_build.presets import Preset

_GAIN_CAPTIONS = 1_500


def create_adapter(
    preset: Preset, data: SceneData, pipe: StableDiffusionPipeline, llm: DecoderLLM
) -> LLMDiffAdapter:
    """An untrained adapter of the preset's kind, its scales set by training captions."""
    torch.manual_seed(preset.seed + 3)
    captions = CaptionedScenes.draw(data, 256, preset.seed, preset.adapter_wording).captions[:-1]
    adapter: LLMDiffAdapter = LLMDiffAdapter.create(
        pipe,
        llm_id=llm.id,
        hidden_size=llm.hidden_size,
        num_blocks=llm.num_blocks,
        encoding=preset.adapter_encoding,
        lone=preset.adapter_lone,
        template=preset.adapter_template,
        scale=preset.adapter_scale,
        refiner_layers=preset.adapter_refiner_layers,
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
    """Trains an adapter that reads an LLM's blocks, see `train_conditioning`; returns nothing."""
    train_conditioning(preset, data, pipe, AdapterConditioning(adapter, llm), folder)


def train_conditioning(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    conditioning: Conditioning,
    folder: Path,
    *,
    seed: int | None = None,
    teacher: Teacher | None = None,
    readings: Path | None = None,
) -> int:
    """How many numbers were trained. Trains any way to condition, stage by stage; each caption is read once.

    With `adapter_warm_steps`, it starts from text alone, for `adapter_gain_steps` plus `adapter_warm_steps`: its
    gains, where it has some, on a few captions whose scores are kept block by block, then the rest on all captions;
    `adapter_steps` on pictures follow. Without `adapter_warm_steps`, all those steps are on pictures. All ways to
    condition get the same captions, batches and noise. `seed` is that of batches and noise where it is not the
    preset's, which chooses the captions. `teacher` may be shared by all trainings on these captions; what is read
    of them and depends on nothing trained is kept in the file `readings`, for other seeds and after a kill.

    Scores per block of every caption would not fit: 1 MB a caption for SmolLM2, 33 MB for a model of 7 B.
    """
    captioned = CaptionedScenes.draw(data, preset.adapter_captions, preset.seed, preset.adapter_wording)
    few = captioned.first(_GAIN_CAPTIONS)
    from_text = preset.adapter_warm_steps > 0
    teacher = teacher or Teacher(pipe, captioned.plain, seed=preset.seed)
    sizes: dict[str, int] = {}
    before = preset.adapter_gain_steps + preset.adapter_warm_steps
    text_left, left = (before, preset.adapter_steps) if from_text else (0, before + preset.adapter_steps)
    for stage in conditioning.stages():
        sizes |= conditioning.trainable()
        is_gains = stage.name == "gains"
        run = _Stage(
            replace(preset, seed=preset.seed if seed is None else seed),
            pipe,
            conditioning,
            stage,
            few if is_gains else captioned,
            teacher,
            readings if stage.fixed else None,
        )
        if from_text:
            steps = preset.adapter_gain_steps if is_gains else text_left
            text_left -= steps
            run.from_text(folder / (stage.name if is_gains else "warm"), steps)
        if not (from_text and is_gains):
            steps = preset.adapter_gain_steps if is_gains else left
            left -= steps
            # What has found its place from text is only moved on.
            share = preset.adapter_lr_share_after_text if from_text else 1.0
            run.on_pictures(data, folder / stage.name, steps, lr_share=share)
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


class _Stage:
    """One stage of a training: what it reads of all its captions is read once, at the first step that needs it."""

    def __init__(
        self,
        preset: Preset,
        pipe: StableDiffusionPipeline,
        conditioning: Conditioning,
        stage: Stage,
        captioned: CaptionedScenes,
        teacher: Teacher,
        kept: Path | None,
    ) -> None:
        self.preset, self.pipe, self.conditioning, self.stage = preset, pipe, conditioning, stage
        self.captioned, self.count, self.teacher = captioned, len(captioned.captions) - 1, teacher
        self._bank = cache(torch.no_grad()(lambda: self._read(kept)))

    def states(self, texts: Sequence[int], generator: torch.Generator) -> Tensor:
        """What goes through diffusers as `encoder_hidden_states` for these captions."""
        return self.stage.condition(self._bank().batch(texts), generator)

    def from_text(self, folder: Path, steps: int) -> None:
        """Trains on captions alone; returns nothing."""
        preset = self.preset
        self.conditioning.train()
        warm_start(
            self.pipe,
            self.conditioning.modules,
            self.captioned.plain,
            lambda texts, generator: (self.states(texts, generator), None),
            lambda: self.teacher.queries,
            self._loop(steps, ema_horizon=100),
            folder,
            installed=self.conditioning.installed,
            batch_size=preset.adapter_batch,
            choose=lambda rng: self._chosen(rng)[0].tolist(),
            layer_inputs=self.conditioning.layer_inputs,
            base_texts=self.teacher.texts,
            title=f"{self.stage.name}, from text",
            **self._rates(),
        )

    def on_pictures(self, data: SceneData, folder: Path, steps: int, *, lr_share: float) -> None:
        """Trains with the base's own objective; returns nothing."""
        unet = self.pipe.unet.requires_grad_(False).eval()
        device, objective = unet.device, Objective.of(create_scheduler())

        def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
            texts, scenes = self._chosen(part.rng(self.preset.seed, 10))
            states = self.states(texts.tolist(), part.generator)
            latents = data.latents[scenes].float().to(device)
            figures = self.conditioning.figures()
            noised = objective.noised(latents, part.generator)
            noisy = noised.latents.contiguous(memory_format=torch.channels_last)
            output = unet(noisy, noised.timesteps, states.to(device), return_dict=False)[0]
            return objective.loss(output, noised), {**figures, **objective.figures(output, noised)}

        self.conditioning.train()
        with self.conditioning.installed(unet):
            train(
                self.conditioning.modules,
                step_loss,
                self._loop(steps, ema_horizon=200, lr_share=lr_share),
                folder,
                title=self.stage.name,
                **self._rates(),
            )

    def _read(self, kept: Path | None) -> Any:
        captions = self.captioned.captions
        of = sha256("\n".join([self.conditioning.source_id, *captions]).encode()).hexdigest()
        if kept is not None and kept.exists():
            return EncodingBank.load(kept, of=of)
        bank = _bank(self.stage, captions)
        if kept is not None and isinstance(bank, EncodingBank):
            bank.save(kept, of=of)
        return bank

    def _chosen(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        preset = self.preset
        return self.captioned.batch(preset.adapter_batch, preset.caption_dropout, rng, self.count)

    def _loop(self, steps: int, *, ema_horizon: int, lr_share: float = 1.0) -> LoopConfig:
        preset = self.preset
        return LoopConfig(
            steps=steps,
            learning_rate=preset.adapter_lr * lr_share,
            lr_warmup_steps=preset.adapter_lr_warmup_steps,
            seed=preset.seed,
            ema_horizon=ema_horizon,
            lr_schedule="cosine",
        )

    def _rates(self) -> dict[str, Any]:
        preset = self.preset
        return {
            "lr_scale": adapter_lr_scale(preset.adapter_scalar_lr / preset.adapter_lr),
            "muon": lambda name: preset.adapter_muon and self.conditioning.uses_muon(name),
        }


def _bank(stage: Stage, captions: Sequence[str]) -> Any:
    """What the stage reads of all captions; `.batch(indices)` hands it out."""
    if stage.keeps == "texts":
        return TextBank(captions)
    size = 16 if stage.name == "gains" else 32
    order = by_length(captions)
    batches = in_batches([captions[i] for i in order], batch=size, title=f"reading for {stage.name}")
    parts = (stage.read(part) for part in batches)
    return GroupBank(parts, order) if stage.keeps == "scores" else EncodingBank(parts, order)
