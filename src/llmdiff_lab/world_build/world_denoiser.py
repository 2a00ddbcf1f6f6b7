"""Train the world's denoiser: a U-Net with its text encoder, in the format of Stable Diffusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from llmdiff.adapter.decoding import decoding_checked
from llmdiff.drawing.grids import save_grid
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.objective import Objective
from llmdiff.world.splits import SPLITS, prompts
from llmdiff_lab.world_build.denoiser import create_scheduler, uses_muon
from llmdiff_lab.world_build.maps import MappingUNet
from llmdiff_lab.world_build.world_presets import WorldPreset
from llmdiff_lab.world_build.world_scenes import SceneSet, map_sizes

PORTRAIT_SHARE = 1 - LoopConfig(steps=1, learning_rate=1.0).lr_decay_share
"""Share of the steps with portraits: all before the learning rate decays."""


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Scenes that train a denoiser, with their latents. Shapes: latents (N, C, h, w), one for each scene.

    Fields:
        batch: number of them in each part of a step.
        share_of_steps: the share of the steps, from the first, that use them.
    """

    scenes: SceneSet
    latents: Tensor
    batch: int
    share_of_steps: float = 1.0


def train_denoiser(
    preset: WorldPreset, sets: Sequence[PictureSet], pipe: StableDiffusionPipeline, folder: Path
) -> None:
    """Train a pipeline's U-Net, and its text encoder with a smaller learning rate, on the sum of the sets' losses."""
    unet, text_encoder = pipe.unet.train(), pipe.text_encoder.train()
    device = unet.device
    pipe.set_progress_bar_config(disable=True)
    objective = Objective.of(create_scheduler())
    sizes = map_sizes(preset.world)
    mapping = MappingUNet(unet, sum(sizes)).to(device)
    denoise = torch.compile(mapping) if preset.compile else mapping
    encode = torch.compile(text_encoder) if preset.compile else text_encoder
    empty = torch.full((pipe.tokenizer.model_max_length,), pipe.tokenizer.eos_token_id, device=device)
    empty[0] = pipe.tokenizer.bos_token_id

    def set_loss(
        one: PictureSet, part: StepPart, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        chosen = one.scenes.sample(one.batch, rng)
        ids = one.scenes.captions(chosen, rng)
        dropped = torch.from_numpy(rng.random(len(ids)) < preset.caption_dropout).to(device)
        states = encode(torch.where(dropped[:, None], empty, ids)).last_hidden_state
        noised = objective.noised(one.latents[chosen].float(), part.generator)
        noisy = noised.latents.contiguous(memory_format=torch.channels_last)
        output, logits = denoise(noisy, noised.timesteps, states)
        velocity = objective.loss(output, noised)
        mapped = map_loss(logits, one.scenes.maps[chosen], sizes)
        # The weight decays to 0, so that only the denoiser's own objective is left at the end.
        weight = preset.map_weight * (1 - part.step / preset.unet_steps)
        figures = {"velocity": float(velocity.detach()), "map": float(mapped.detach())}
        return velocity + weight * mapped, {**figures, **objective.figures(output, noised)}

    def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        rng = part.rng(preset.seed, 7)
        first, *others = (one for one in sets if part.step < one.share_of_steps * preset.unet_steps)
        loss, figures = set_loss(first, part, rng)
        for index, one in enumerate(others, 1):
            more, own = set_loss(one, part, rng)
            loss = loss + more
            figures |= {f"{name}_{index}": value for name, value in own.items()}
        return loss, figures

    config = LoopConfig(
        steps=preset.unet_steps,
        learning_rate=preset.unet_lr,
        lr_warmup_steps=300,
        lr_schedule="trapezoid",
        seed=preset.seed,
        ema_horizon=preset.unet_ema_horizon,
        sample_every=preset.sample_every,
        precision=preset.precision,
    )
    train(
        {"unet": unet, "text": text_encoder, "map": mapping.head},
        step_loss,
        config,
        folder,
        title="denoiser",
        muon=lambda name: name.startswith("unet.") and uses_muon(name),
        lr_scale=lambda name: (preset.text_lr_share if name.startswith("text.") else 1.0, 1.0),
        on_sample=lambda step: save_samples(preset, pipe, folder / "samples" / f"step-{step:06d}.png"),
    )
    mapping.hook.remove()
    unet.eval()
    text_encoder.eval()


def map_loss(logits: Tensor, maps: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the cross-entropy of maps, averaged over cells and summed over layers.

    Shapes: logits (B, sum of sizes, S, S); maps (B, layers, S, S) integers; result ().
    """
    layers = torch.split(logits.float(), list(sizes), dim=1)
    return torch.stack([F.cross_entropy(layer, maps[:, i].long()) for i, layer in enumerate(layers)]).sum()


@torch.no_grad()
def save_samples(preset: WorldPreset, pipe: StableDiffusionPipeline, path: Path) -> None:
    """Draw a constant set of prompts, half of them from the split "seen", and save them as one labelled picture."""
    others = [split for split in SPLITS if split not in ("seen", "long")]
    seen = prompts("seen", preset.sample_count, world=preset.world)
    texts = [
        seen[i].text
        if i % 2 == 0
        else prompts(others[i // 2 % len(others)], 2, world=preset.world)[i % 4 // 2].text
        for i in range(preset.sample_count)
    ]
    was_training = pipe.unet.training
    pipe.unet.eval()
    with decoding_checked(pipe):
        images = pipe(
            texts,
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(preset.seed),
            output_type="np",
            height=preset.image_size_px,
            width=preset.image_size_px,
        ).images
    pipe.unet.train(was_training)
    save_grid((images * 255).round().astype(np.uint8), texts, path, columns=6)
