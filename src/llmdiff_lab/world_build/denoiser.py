"""The embedded default's base: a U-Net trained with its text encoder, in Stable Diffusion's own format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from llmdiff.adapter.decoding import decoding_checked
from llmdiff.drawing.grids import save_grid
from llmdiff.openmoji.captions import Wording, caption
from llmdiff.openmoji.contents import SPLITS
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.objective import Objective
from llmdiff_lab.world_build.dataset import SceneData
from llmdiff_lab.world_build.maps import MappingUNet, map_classes, map_loss
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.text_encoder import token_ids
from llmdiff_lab.world_build.world_presets import WorldPreset


def create_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR: flat backgrounds of any brightness can be reached from pure noise.

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


def create_unet(preset: Preset | WorldPreset, latent_side: int) -> UNet2DConditionModel:
    """An untrained U-Net; its finest level has no attention, where convolutions cost most."""
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
    """The four parts as a plain Stable Diffusion pipeline."""
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


def train_denoiser(
    preset: Preset,
    data: SceneData,
    vae: AutoencoderKL,
    text_encoder: Any,
    tokenizer: CLIPTokenizer,
    folder: Path,
    device: torch.device,
) -> StableDiffusionPipeline:
    """The trained base pipeline. The text encoder goes on learning, at a smaller rate, from the denoiser's loss."""
    torch.manual_seed(preset.seed + 2)
    unet = create_unet(preset, data.latents.shape[-1]).to(device, memory_format=torch.channels_last)
    pipe = create_pipeline(vae, text_encoder.to(device), tokenizer, unet)
    train_on(preset, data, pipe, folder)
    return pipe


def train_on(
    preset: Preset,
    data: SceneData,
    pipe: StableDiffusionPipeline,
    folder: Path,
    *,
    wording: Wording = "training",
) -> None:
    """Train a pipeline's denoiser and text encoder, from wherever they are, for the preset's steps."""
    unet, text_encoder, tokenizer = pipe.unet.train(), pipe.text_encoder.train(), pipe.tokenizer
    device = unet.device
    pipe.set_progress_bar_config(disable=True)
    objective = Objective.of(create_scheduler())
    mapping = MappingUNet(unet, len(map_classes(data.world))).to(device)
    denoise = torch.compile(mapping) if preset.compile else mapping
    encode = torch.compile(text_encoder) if preset.compile else text_encoder

    def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        rng = part.rng(preset.seed, 7)
        indices = rng.integers(len(data.contents), size=preset.unet_batch)
        captions = data.captions(indices, rng, wording)
        kept = rng.random(len(captions)) >= preset.caption_dropout
        ids = token_ids(tokenizer, [text if keep else "" for text, keep in zip(captions, kept, strict=True)])
        states = encode(ids.to(device)).last_hidden_state
        latents = data.latents[indices].float().to(device)
        noised = objective.noised(latents, part.generator)
        noisy = noised.latents.contiguous(memory_format=torch.channels_last)
        output, logits = denoise(noisy, noised.timesteps, states)
        velocity = objective.loss(output, noised)
        mapped = map_loss(logits, data.maps[indices])
        # Its weight falls to 0: in the end only the denoiser's own objective counts.
        weight = preset.unet_map_weight * (1 - part.step / preset.unet_steps)
        figures = {
            "velocity": float(velocity.detach()),
            "map": float(mapped.detach()),
            **objective.figures(output, noised),
        }
        return velocity + weight * mapped, figures

    config = LoopConfig(
        steps=preset.unet_steps,
        learning_rate=preset.unet_lr,
        lr_warmup_steps=300,
        lr_schedule="trapezoid",
        seed=preset.seed,
        ema_horizon=1000,
        sample_every=500,
    )

    def sample(step: int) -> None:
        save_samples(pipe, data, folder / "samples" / f"step-{step:06d}.png", seed=preset.seed)

    train(
        {"unet": unet, "text": text_encoder, "map": mapping.head},
        step_loss,
        config,
        folder,
        title="denoiser",
        muon=lambda name: preset.unet_muon and name.startswith("unet.") and uses_muon(name),
        lr_scale=lambda name: (preset.unet_text_lr_share if name.startswith("text.") else 1.0, 1.0),
        on_sample=sample,
    )
    mapping.hook.remove()
    unet.eval()
    text_encoder.eval()


def uses_muon(name: str) -> bool:
    """Whether a matrix of the U-Net lies between others; first, last and time layers are left to AdamW."""
    return name.split(".")[1] in ("down_blocks", "mid_block", "up_blocks") and "time_emb" not in name


@torch.no_grad()
def save_samples(
    pipe: StableDiffusionPipeline, data: SceneData, path: Path, *, seed: int, count: int = 24
) -> None:
    """Draw the same captions of every split each time and saves them as one labelled picture."""
    rng = np.random.default_rng([seed, 8])
    splits = [SPLITS[i % len(SPLITS)] if i % 2 else "seen" for i in range(count)]
    captions = [caption(data.world.content(split, rng), data.world, rng, split) for split in splits]
    pipe.unet.eval()
    with decoding_checked(pipe):
        images = pipe(
            captions,
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            height=pipe.vae.config.sample_size,
            width=pipe.vae.config.sample_size,
        ).images
    pipe.unet.train()
    save_grid((images * 255).round().astype(np.uint8), captions, path, columns=6)
