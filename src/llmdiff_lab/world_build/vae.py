"""Train the VAE on scenes, and refine its decoder at the end of the build."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.drawing.grids import save_grid
from llmdiff.training.loop import StepLoss, StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff_lab.world_build.presets import Preset
from llmdiff_lab.world_build.spoiling import to_uint8

_KL_WEIGHT, _DECODER_NOISE = 1e-7, 0.05


def create_vae(preset: Preset) -> AutoencoderKL:
    """Return an untrained VAE: each level after the first halves the image's side."""
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


def train_vae(
    preset: Preset, pictures: NDArray[np.uint8], folder: Path, device: torch.device
) -> AutoencoderKL:
    """Return a VAE whose `scaling_factor` gives latents of unit variance.

    Shapes: pictures (N, H, W, 3).

    Source: the loss on smaller latents after EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509), with scaling alone.
    """
    torch.manual_seed(preset.seed)
    vae = create_vae(preset).to(device, memory_format=torch.channels_last)
    if preset.compile:
        vae.encoder.compile()
        vae.decoder.compile()
    stored = torch.from_numpy(pictures).to(device)

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        images = _crops(stored, part.rng(preset.seed, 1), preset.vae_batch, preset.vae_crop_px)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=part.generator)
        latents = posterior.mean + posterior.std * noise.to(device)
        loss, figures = _pixel_loss(vae.decode(latents).sample, images)
        smaller = vae.decode(F.avg_pool2d(latents, 2)).sample
        scaled, _ = _pixel_loss(smaller, F.avg_pool2d(images, 2))
        return loss + preset.vae_scale_weight * scaled + _KL_WEIGHT * posterior.kl().mean(), figures

    _train(preset, {"vae": vae}, step_loss, preset.vae_steps, preset.vae_lr, folder, "vae")
    vae.eval()
    with torch.no_grad():
        latents = encode_pictures(vae, pictures[:512], preset.precision)
        vae.register_to_config(scaling_factor=float(vae.config.scaling_factor / latents.float().std()))
    return vae


def refine_decoder(
    vae: AutoencoderKL, preset: Preset, pictures: NDArray[np.uint8], folder: Path, device: torch.device
) -> AutoencoderKL:
    """Return the VAE after further training of its decoder; its latents, and models trained on them, do not change.

    A little noise is added to the latents, because generated latents are not exact.
    """
    vae = vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    vae.decoder.requires_grad_(True).train()
    if preset.compile:
        vae.decoder.compile()
    stored, rms = torch.from_numpy(pictures).to(device), 1 / vae.config.scaling_factor

    def step_loss(part: StepPart) -> tuple[Tensor, dict[str, float]]:
        images = _crops(stored, part.rng(preset.seed, 11), preset.vae_batch, preset.vae_crop_px)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        noise = torch.randn(latents.shape, generator=part.generator).to(latents)
        return _pixel_loss(vae.decode(latents + _DECODER_NOISE * rms * noise).sample, images)

    modules = {"decoder": vae.decoder}
    _train(preset, modules, step_loss, preset.decoder_steps, preset.decoder_lr, folder, "decoder")
    return vae.eval()


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, pictures: NDArray[np.uint8], sheet: Path) -> float:
    """Return the mean peak signal-to-noise ratio of these pictures in decibel; save the first ones with originals."""
    values: list[float] = []
    for start in range(0, len(pictures), 64):
        batch = pictures[start : start + 64]
        device = next(vae.parameters()).device
        latents = vae.encode(to_images(torch.from_numpy(batch).to(device))).latent_dist.mean
        output = to_uint8(vae.decode(latents).sample)
        error = ((output.astype(np.float64) - batch) ** 2).mean((1, 2, 3))
        values += list(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
        if start == 0:
            pairs = np.stack([batch[:12], output[:12]], 1).reshape(-1, *batch.shape[1:])
            save_grid(pairs, ["real", "decoded"] * (len(pairs) // 2), sheet, columns=6)
    return float(np.mean(values))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: NDArray[np.uint8], precision: str) -> Tensor:
    """Return scaled latents of pictures (posterior means) on the CPU.

    Shapes: pictures (N, H, W, 3); result (N, C, h, w) float16.
    """
    device = next(vae.parameters()).device
    latents = []
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for start in range(0, len(pictures), 64):
            images = to_images(torch.from_numpy(pictures[start : start + 64]).to(device))
            mean = vae.encode(images).latent_dist.mean
            latents.append((mean.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(latents).contiguous()


def to_images(pictures: Tensor) -> Tensor:
    """Return the VAE's input for pictures. Shapes: (N, H, W, 3) uint8 => (N, 3, H, W) in -1..1."""
    return (pictures.float() / 127.5 - 1).permute(0, 3, 1, 2)


def _crops(stored: Tensor, rng: np.random.Generator, count: int, side_px: int) -> Tensor:
    """Return random crops of random pictures. Shapes: stored (N, H, W, 3); result (count, 3, side_px, side_px)."""
    chosen = rng.integers(len(stored), size=count)
    tops, lefts = (rng.integers(stored.shape[axis] - side_px + 1, size=count) for axis in (1, 2))
    corners = zip(chosen, tops, lefts, strict=True)
    return to_images(
        torch.stack([stored[i, top : top + side_px, left : left + side_px] for i, top, left in corners])
    )


def _pixel_loss(output: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    squared = F.mse_loss(output.float(), images)
    # The absolute error keeps outlines sharp, which the squared error alone would blur.
    loss = squared + 0.5 * F.l1_loss(output.float(), images)
    return loss, {"psnr_db": float(-10 * torch.log10(squared.detach() / 4))}


def _train(
    preset: Preset,
    modules: Mapping[str, nn.Module],
    step_loss: StepLoss,
    steps: int,
    lr: float,
    folder: Path,
    title: str,
) -> None:
    config = LoopConfig(
        steps=steps,
        learning_rate=lr,
        lr_schedule="trapezoid",
        seed=preset.seed,
        ema_horizon=200,
        precision=preset.precision,
    )
    train(modules, step_loss, config, folder, title=title, muon=_uses_muon)


def _uses_muon(name: str) -> bool:
    """Return whether Muon optimises a matrix: all but the first and last ones."""
    return not any(part in name for part in ("conv_in", "conv_out", "quant_conv"))
