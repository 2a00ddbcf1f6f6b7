"""Train the denoiser: a U-Net with its text encoder, in the format of Stable Diffusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from llmdiff.adapter.decoding import decoding_checked
from llmdiff.drawing.grids import save_grid
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.objective import Objective
from llmdiff.training.processes import attention_kernel
from llmdiff.world.splits import SPLITS, prompts
from llmdiff_lab.world_build.maps import MappingUNet, map_loss, map_sizes
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.scenes import SceneSet

PORTRAIT_SHARE = 1 - LoopConfig(steps=1, learning_rate=1.0).lr_decay_share
"""Share of the steps with portraits: all before the learning rate decays."""


def create_scheduler() -> DDIMScheduler:
    """Return a scheduler of v-prediction with zero terminal SNR, which can draw backgrounds of any brightness.

    Source: Lin et al. 2023 (arXiv 2305.08891); Salimans and Ho 2022 for v.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def create_unet(preset: Preset, latent_side: int) -> UNet2DConditionModel:
    """Return an untrained U-Net; its finest level has no attention, where convolutions cost most."""
    coarser = len(preset.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=preset.vae_latent_channels,
        out_channels=preset.vae_latent_channels,
        layers_per_block=preset.unet_layers_per_block,
        block_out_channels=preset.unet_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * coarser),
        up_block_types=(*("CrossAttnUpBlock2D",) * coarser, "UpBlock2D"),
        attention_head_dim=tuple(
            max(1, channels // preset.unet_head_width) for channels in preset.unet_channels
        ),
        cross_attention_dim=preset.text_width,
        norm_num_groups=16,
    )


def create_pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the four models as a Stable Diffusion pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=create_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Scenes that train a denoiser, with the latents of the first N. Shapes: latents (N, C, h, w).

    Fields:
        batch: number of them in each part of a step.
        share_of_steps: the share of the steps, from the first, that use them.
    """

    scenes: SceneSet
    latents: Tensor
    batch: int
    share_of_steps: float = 1.0


def train_denoiser(
    preset: Preset, sets: Sequence[PictureSet], pipe: StableDiffusionPipeline, folder: Path
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
        chosen = one.scenes.sample(one.batch, rng, among=len(one.latents))
        ids = one.scenes.captions(chosen, rng)
        dropped = torch.from_numpy(rng.random(len(ids)) < preset.caption_dropout).to(device)
        states = encode(torch.where(dropped[:, None], empty, ids)).last_hidden_state
        noised = objective.noised(one.latents[chosen].float(), part.generator, power=preset.unet_noise_power)
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
        with attention_kernel(device):
            loss, figures = set_loss(first, part, rng)
            for index, one in enumerate(others, 1):
                more, own = set_loss(one, part, rng)
                loss = loss + more
                figures |= {f"{name}_{index}": value for name, value in own.items()}
        return loss, figures

    config = LoopConfig(
        steps=preset.unet_steps,
        learning_rate=preset.unet_lr,
        lr_warmup_steps=100,
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


def uses_muon(name: str) -> bool:
    """Return whether Muon optimises a matrix of the U-Net: not those of the first, last and time layers."""
    return name.split(".")[1] in ("down_blocks", "mid_block", "up_blocks") and "time_emb" not in name


@torch.no_grad()
def save_samples(preset: Preset, pipe: StableDiffusionPipeline, path: Path) -> None:
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
