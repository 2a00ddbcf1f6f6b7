"""Distort renders like a diffusion model and its decoder, to train models that read generated pictures."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_CLEAN_SHARE, _JPEG_SHARE, _WARP_SHARE, _SHRUNK_SHARE = 0.25, 0.2, 0.5, 0.3
_WARP_CELLS, _WARP_PX = 5, 2.0


@contextmanager
def _full_precision() -> Iterator[None]:
    """Turn autocast off: with it, some results are bfloat16, and torch.lerp refuses mixed dtypes."""
    with torch.autocast("cpu", enabled=False):
        yield


@_full_precision()
def spoil(
    images: NDArray[np.uint8], rng: np.random.Generator, *, clean_share: float = _CLEAN_SHARE
) -> Tensor:
    """Return pictures with the faults of generated ones; a share of them stays clean.

    Faults: JPEG blocks, bent outlines, lost detail (down and up again), blur, noise, a shift of the colours.

    Shapes: images (N, H, W, 3); the result (N, 3, H, W) in -1..1.
    """
    spoilt = rng.random(len(images)) >= clean_share
    jpeg = spoilt & (rng.random(len(images)) < _JPEG_SHARE)
    images = np.stack([_jpeg(image, rng) if bad else image for image, bad in zip(images, jpeg, strict=True)])
    clean = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    pixels = clean.clone()
    bent = torch.from_numpy(spoilt & (rng.random(len(images)) < _WARP_SHARE))
    pixels[bent] = _bent(pixels[bent], rng)
    # One factor for the whole batch, which is resized at once.
    shrunk = torch.from_numpy(spoilt & (rng.random(len(images)) < _SHRUNK_SHARE))
    pixels[shrunk] = _shrunk(pixels[shrunk], rng.uniform(0.5, 0.9))
    return torch.where(torch.from_numpy(spoilt).view(-1, 1, 1, 1), _faded(pixels, rng), clean)


@_full_precision()
def mush(pixels: Tensor, others: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pictures without recognisable things: mixed with others, or strongly blurred.

    Shapes: pixels, others (N, 3, H, W) in -1..1 => the same.
    """
    reach = pixels.shape[-1] // 8
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * (reach / 2) ** 2))
    blurred = blur(pixels, kernel / kernel.sum())
    share = torch.from_numpy(rng.uniform(0.4, 0.6, size=(len(pixels), 1, 1, 1)).astype(np.float32))
    blend = torch.lerp(pixels, others.flip(-1), share)
    chosen = torch.from_numpy(rng.random((len(pixels), 1, 1, 1)) < 0.4)
    return torch.where(chosen, blurred, blend)


def blur(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Return pictures blurred in both directions. Shapes: (N, 3, H, W) => the same; kernel (K,), K odd."""
    reach = len(kernel) // 2
    rows = kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=3), rows.transpose(2, 3), groups=3)


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pictures of pixels in -1..1. Shapes: (N, 3, H, W) => (N, H, W, 3)."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _jpeg(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=int(rng.integers(25, 90)))
    return np.asarray(Image.open(written))


def _bent(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pictures warped smoothly by up to two pixels."""
    if not len(pixels):
        return pixels
    count, size = len(pixels), pixels.shape[-1]
    coarse = rng.uniform(-1, 1, (count, 2, _WARP_CELLS, _WARP_CELLS)).astype(np.float32)
    moved = F.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bicubic", align_corners=True)
    identity = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(identity, [count, 3, size, size], align_corners=False)
    grid = grid + moved.permute(0, 2, 3, 1) * (_WARP_PX * 2 / size)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _shrunk(pixels: Tensor, factor: float) -> Tensor:
    if not len(pixels):
        return pixels
    size = pixels.shape[-1]
    small = F.interpolate(
        pixels, size=(round(size * factor),) * 2, mode="bilinear", antialias=True, align_corners=False
    )
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False)


def _faded(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    def strength(most: float) -> Tensor:
        return torch.from_numpy(rng.uniform(0, most, size=(len(pixels), 1, 1, 1)).astype(np.float32))

    # The picture and its (1, 4, 6, 4, 1) / 16 blur, mixed: a standard deviation of 0 to 1 pixel, often the most.
    soft = blur(pixels, torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16)
    pixels = torch.lerp(pixels, soft, strength(1.3).clamp(max=1.0))
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
    shift = torch.from_numpy(rng.uniform(-1, 1, size=(len(pixels), 3, 1, 1)).astype(np.float32))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(len(pixels), 1, 1, 1)).astype(np.float32))
    gain = 1 + strength(0.08) * signs
    return (pixels * gain + strength(0.08) * shift + strength(0.1) * noise).clamp(-1, 1)
