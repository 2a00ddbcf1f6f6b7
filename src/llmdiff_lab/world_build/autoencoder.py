"""The embedded default's VAE, and the latents of the scenes that everything after it is trained on."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmdiff.openmoji.contents import World
from llmdiff.openmoji.scenes import draw, lay_out
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.world_presets import WorldPreset

_KL_WEIGHT, _DECODER_NOISE = 1e-6, 0.05


def create_vae(preset: Preset | WorldPreset) -> AutoencoderKL:
    """An untrained VAE: each level after the first halves the image's side."""
    levels = len(preset.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels,
        layers_per_block=1,
        latent_channels=preset.vae_latent_channels,
        norm_num_groups=8,
        sample_size=preset.image_size_px,
        mid_block_add_attention=False,
    )


def scene_batch(world: World, rng: np.random.Generator, count: int, image_size_px: int) -> Tensor:
    """Random training scenes.

    Shapes: (count, 3, image_size_px, image_size_px) float32 in -1..1.
    """
    images = [
        draw(lay_out(world.training_content(rng), rng), image_size_px=image_size_px) for _ in range(count)
    ]
    return to_tensor(np.stack(images))


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Images (N, H, W, 3) uint8 => (N, 3, H, W) float32 in -1..1, channels last in memory."""
    return (torch.from_numpy(images).float() / 127.5 - 1).permute(0, 3, 1, 2)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Images (N, 3, H, W) in -1..1 => (N, H, W, 3) uint8."""
    scaled = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def train_vae(preset: Preset, folder: Path, device: torch.device) -> AutoencoderKL:
    """A trained VAE whose `scaling_factor` gives latents of unit variance."""
    torch.manual_seed(preset.seed)
    vae = create_vae(preset).to(device, memory_format=torch.channels_last)
    world = World(objects=preset.objects)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 1)
        images = scene_batch(world, rng, preset.vae_batch, preset.image_size_px).to(device)
        side = preset.image_size_px // 2 ** (len(preset.vae_channels) - 1)
        noise = torch.randn(len(images), preset.vae_latent_channels, side, side, generator=part.generator).to(
            device
        )
        output, kl = _reconstruct(vae, images, noise)
        squared = F.mse_loss(output, images)
        # The absolute error keeps flat colours and outlines sharp where the squared one alone would blur them.
        loss = squared + 0.5 * F.l1_loss(output, images) + _KL_WEIGHT * kl
        return loss, {"psnr_db": float(-10 * torch.log10(squared.detach() / 4)), "kl": float(kl.detach())}

    config = LoopConfig(
        steps=preset.vae_steps,
        learning_rate=preset.vae_lr,
        seed=preset.seed,
        sample_every=500,
        ema_horizon=200,
    )
    train({"vae": vae}, step_loss, config, folder, title="vae")
    vae.eval()
    with torch.no_grad():
        images = scene_batch(world, np.random.default_rng([preset.seed, 2]), 256, preset.image_size_px).to(
            device
        )
        latents = vae.encode(images).latent_dist.mean
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae


def refine_decoder(vae: AutoencoderKL, preset: Preset, folder: Path, device: torch.device) -> AutoencoderKL:
    """The VAE with its decoder trained on: its latents, and so everything trained on them, stay as they are.

    The latents get a little noise, because those that a denoiser draws are never quite right either.
    """
    vae = vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    vae.decoder.requires_grad_(True).train()
    world, rms = World(objects=preset.objects), 1 / vae.config.scaling_factor

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        rng = part.rng(preset.seed, 11)
        images = scene_batch(world, rng, preset.vae_batch, preset.image_size_px).to(device)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        noise = torch.randn(latents.shape, generator=part.generator).to(latents)
        output = vae.decode(latents + _DECODER_NOISE * rms * noise).sample
        squared = F.mse_loss(output, images)
        loss = squared + 0.5 * F.l1_loss(output, images)
        return loss, {"psnr_db": float(-10 * torch.log10(squared.detach() / 4))}

    config = LoopConfig(
        steps=preset.decoder_steps, learning_rate=preset.decoder_lr, seed=preset.seed, ema_horizon=200
    )
    train({"decoder": vae.decoder}, step_loss, config, folder, title="decoder")
    return vae.eval()


def held_out_psnr_db(vae: AutoencoderKL, preset: Preset, count: int = 512) -> float:
    """The mean peak signal-to-noise ratio of scenes that training never drew. Units: decibel."""
    world, rng = World(objects=preset.objects), np.random.default_rng([preset.seed, 3])
    contents = [world.content("pairs" if i % 2 else "colours", rng) for i in range(count)]
    images = np.stack([draw(lay_out(c, rng), image_size_px=preset.image_size_px) for c in contents])
    values: list[float] = []
    device = next(vae.parameters()).device
    with torch.no_grad():
        for batch in torch.split(to_tensor(images), 64):
            latents = vae.encode(batch.to(device)).latent_dist.mean
            output = to_uint8(vae.decode(latents).sample).astype(np.float64)
            error = ((output - to_uint8(batch)) ** 2).mean((1, 2, 3))
            values += list(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
    return float(np.mean(values))


@torch.no_grad()
def encode_images(
    vae: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 128, title: str = ""
) -> Tensor:
    """Scaled latents of images, posterior means.

    Shapes: images (N, H, W, 3) uint8; result (N, C, h, w) float16.
    """
    device = next(vae.parameters()).device
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    latents = [
        (vae.encode(to_tensor(part).to(device)).latent_dist.mean * vae.config.scaling_factor).half().cpu()
        for part in tqdm(parts, desc=title, disable=not title, mininterval=5)
    ]
    return torch.cat(latents).contiguous()


def _reconstruct(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    posterior = vae.encode(images).latent_dist
    output = vae.decode(posterior.mean + posterior.std * noise).sample
    return output, posterior.kl().mean()
