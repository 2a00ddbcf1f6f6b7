"""Call denoisers and VAEs of every family in training as their pipelines do in inference."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdiff.adapter.families import FAMILIES, Family, denoiser_of, family_of
from llmdiff.adapter.prompt_parts import no_second_text
from llmdiff.errors import ConfigError, UnsupportedPipelineError

_MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask")
_TIMESTEPS = 1000  # of all pipelines that pass time as a share of the schedule


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a picture, which some denoisers are conditioned on. Units: pixels, (height, width) or (top, left).

    Fields:
        original: size of the original picture; crop: top left corner of the crop; target: size of the crop.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


def check_trainable(pipe: Any, *, checkpointing: bool = False) -> None:
    """Check that adapters for this pipeline can be trained, with gradient checkpointing if `checkpointing`.

    Raises:
        UnsupportedPipelineError: its denoiser is not trained to denoise latents of pictures, or it has two.
        ConfigError: the denoiser has no argument that passes the text to recomputed layers.
    """
    family, denoiser = family_of(pipe), denoiser_of(pipe)
    config: Any = denoiser.config
    if checkpointing and family.carrier is None and family.text_channel != "states":
        raise ConfigError(
            f"training.gradient_checkpointing is true, which recomputes layers, and {family.title} has no argument "
            "that gives them the LLM's text: set it to false, and use a smaller batch with accumulation_steps"
        )
    if family.objective is None or config.get("use_meanflow") or config.get("time_cond_proj_dim") is not None:
        trained = ", ".join(row.title for row in FAMILIES if row.objective is not None)
        raise _untrainable(
            family,
            f"it is distilled from a teacher, whose objective is not known; train on a base of {trained}",
        )
    if getattr(pipe, "transformer_2", None) is not None:
        raise _untrainable(
            family,
            "it has separate denoisers for high and low noise; use a base with a single denoiser",
        )
    patch = family.patch_of(denoiser) if family.latents == "patches" else 1
    kind, taken = type(denoiser), int(config.in_channels) // patch**2
    made = int(pipe.vae.config.get("latent_channels") or pipe.vae.config.z_dim)
    if family.denoisers[0] not in {parent.__name__ for parent in kind.__mro__} or taken != made:
        raise _untrainable(
            family,
            f"its {kind.__name__} takes {taken} channels, but the VAE gives {made} for a picture: it is a model for "
            "video, editing or other conditions; train on the family's text-to-image base",
        )


def _untrainable(family: Family, why: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"llmdiff train cannot train on this base of the family {family.title}: {why}. Adapters still attach to it and "
        "can be trained in your own loop"
    )


def denoise(
    denoiser: Any,
    family: Family,
    latents: Tensor,
    timesteps: Tensor,
    states: Tensor,
    pooled: Tensor | None,
    sizes: list[Sizes],
) -> Tensor:
    """Return the denoiser's prediction for noisy latents under the LLM's text states.

    Shapes: latents, result (B, C, h, w); timesteps (B,); states (B, T, W + D), from `adapter.condition`; pooled
        (B, pooled width) or None.
    """
    dtype, channels = denoiser.dtype, latents.shape[1]
    latents, states = latents.to(dtype), states.to(latents.device, dtype)
    pooled = None if pooled is None else pooled.to(latents.device, dtype)
    patch = family.patch_of(denoiser)
    wanted = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    given = {
        **_beside(denoiser, family, latents, states, pooled, sizes, wanted),
        wanted[0]: _as_taken(family, latents, patch),
        "t" if "t" in wanted else "timestep": _as_counted(denoiser, family, timesteps),
        family.text_argument: list(states) if family.ragged else states,
    }
    output = denoiser(**given, return_dict=False)[0]
    result = _as_latents(family, output, patch, latents.shape)
    # Some denoisers predict a variance in further channels, which samplers ignore.
    result = result[:, :channels]
    return -result if family.time == "picture" else result


def _as_taken(family: Family, latents: Tensor, patch: int) -> Tensor | list[Tensor]:
    """Return latents (B, C, h, w) in the layout of the family's denoisers."""
    if family.latents == "patches":
        return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)
    if family.latents == "videos":
        latents = latents[:, :, None]
    return list(latents) if family.ragged else latents


def _as_latents(family: Family, given: Any, patch: int, shape: torch.Size) -> Tensor:
    """Return a denoiser's output as latents (B, C, h, w): the inverse of `_as_taken`."""
    output: Tensor = torch.stack(given) if family.ragged else given
    if family.latents == "patches":
        rows = output.transpose(1, 2).reshape(shape[0], -1, shape[2] // patch, shape[3] // patch)
        return F.pixel_shuffle(rows, patch)
    return output[:, :, 0] if family.latents == "videos" else output


def _as_counted(denoiser: Any, family: Family, timesteps: Tensor) -> Tensor:
    """Return the scheduler's timesteps in the convention of the family's denoisers."""
    if family.time == "noise":
        return timesteps / _TIMESTEPS
    if family.time == "picture":
        return 1 - timesteps / _TIMESTEPS
    scale = denoiser.config.get("timestep_scale", 1)
    return timesteps if scale == 1 else timesteps * scale


def _beside(
    denoiser: Any,
    family: Family,
    latents: Tensor,
    states: Tensor,
    pooled: Tensor | None,
    sizes: list[Sizes],
    wanted: list[str],
) -> Mapping[str, Any]:
    """Return a denoiser's arguments besides latents, time and text, with their values in text-to-image."""
    config, patch, (count, tokens) = denoiser.config, family.patch_of(denoiser), states.shape[:2]
    height, width = latents.shape[2] // patch, latents.shape[3] // patch
    found: dict[str, Any] = {"enable_temporal_attentions": False, "num_frames": 1}
    if family.text_channel == "joint":
        # The adapter's hook replaces this mask, because states contain their padding mask.
        found |= {
            name: torch.ones(states.shape[:2], device=states.device, dtype=torch.long) for name in _MASKS
        }
    if config.get("guidance_embeds"):
        found["guidance"] = torch.ones(count).to(latents)
    if "height" in wanted:
        target = sizes[0].target
        per_latent = (target[0] / latents.shape[2], target[1] / latents.shape[3])
        # The first factor scales the frame index, which is 0.
        found |= {"height": height, "width": width, "rope_interpolation_scale": (1.0, *per_latent)}
    if "img_shapes" in wanted:
        found["img_shapes"] = [[(1, height, width)]] * count
    if "img_ids" in wanted:
        found["img_ids"], found["txt_ids"] = _positions(
            len(config.axes_dims_rope), height, width, tokens, latents
        )
        if len(config.axes_dims_rope) == 4:
            found |= {name: found[name].expand(count, -1, -1) for name in ("img_ids", "txt_ids")}
    if "encoder_hidden_states_2" in wanted:
        second = no_second_text(states, denoiser)
        found["encoder_hidden_states_2"], found["encoder_attention_mask_2"] = second
    if "crop_coords" in wanted:
        named = {"original_size": "original", "crop_coords": "crop", "target_size": "target"}
        found |= {
            name: latents.new_tensor([getattr(size, of) for size in sizes]) for name, of in named.items()
        }
    found |= {"pooled_projections": pooled, "added_cond_kwargs": _added(config, latents, pooled, sizes)}
    return {name: value for name, value in found.items() if name in wanted}


def _positions(axes: int, height: int, width: int, tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the position ids of Flux's image rows, (rows, axes), and of its text rows, (tokens, axes).

    Flux has the axes (0, y, x), and text has no position; FLUX.2 has (0, y, x, 0) and (0, 0, 0, token).
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.zeros(height * width, axes)
    image[:, 1], image[:, 2] = y.flatten(), x.flatten()
    text = torch.zeros(tokens, axes)
    if axes == 4:
        text[:, 3] = torch.arange(tokens)
    return image.to(like), text.to(like)


def _added(config: Any, latents: Tensor, pooled: Tensor | None, sizes: list[Sizes]) -> dict[str, Any] | None:
    """Return the conditions that Stable Diffusion XL and PixArt-alpha add to the time embedding."""
    if "use_additional_conditions" in config:
        if not config.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        target = latents.new_tensor([size.target for size in sizes])
        return {"resolution": target, "aspect_ratio": target[:, :1] / target[:, 1:]}
    if pooled is None:
        return None
    ids = latents.new_tensor([(*size.original, *size.crop, *size.target) for size in sizes])
    return {"text_embeds": pooled, "time_ids": ids}


def encode_pictures(vae: Any, pixels: Tensor) -> Tensor:
    """Return pictures as scaled latents: the mode of the VAE's posterior, so encoding is deterministic.

    Shapes: pixels (B, 3, H, W) in -1..1; result (B, C, h, w) float32.
    """
    pixels = pixels.to(vae.device, vae.dtype)
    # A VAE for videos takes a picture as a single frame.
    of_videos = any(isinstance(layer, nn.Conv3d) for layer in vae.encoder.modules())
    encoded = vae.encode(pixels[:, :, None] if of_videos else pixels)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return scaled(vae, latents[:, :, 0] if of_videos else latents)


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Return latents scaled for denoisers, with mean about 0 and variance about 1.

    Shapes: (B, C, h, w) => (B, C, h, w) float32.
    """
    latents, config = latents.float(), vae.config
    statistics: Any = getattr(vae, "bn", None)
    if statistics is not None:
        # FLUX.2 normalises its patches of 2 x 2 latents, channel by channel.
        mean, variance = statistics.running_mean.to(latents), statistics.running_var.to(latents)
        return F.pixel_shuffle(
            F.batch_norm(F.pixel_unshuffle(latents, 2), mean, variance, eps=config.batch_norm_eps), 2
        )
    known = {
        **dict(vae.named_buffers(recurse=False)),
        **{name: one for name, one in config.items() if one is not None},
    }
    mean, deviation = known.get("latents_mean"), known.get("latents_std")
    mean = (config.get("shift_factor") or 0.0) if mean is None else _by_channel(mean, latents)
    deviation = 1.0 if deviation is None else _by_channel(deviation, latents)
    return (latents - mean) * (config.get("scaling_factor") or 1.0) / deviation


def _by_channel(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values).to(like)[:, None, None]


def latent_side_px(vae: Any) -> int:
    """Return the side of the square of pixels that one latent covers, in pixels."""
    ratio = getattr(vae, "spatial_compression_ratio", None)
    return int(ratio or 2 ** (len(vae.config.block_out_channels) - 1))


def side_multiple_px(pipe: Any, family: Family) -> int:
    """Return the number of pixels that a picture's sides must be divisible by for this pipeline."""
    config: Any = denoiser_of(pipe).config
    if getattr(pipe, "unet", None) is not None:
        latents = 2 ** (len(config.block_out_channels) - 1)
    else:
        inside = config.get("patch_size", 1)
        latents = max(inside if isinstance(inside, int) else inside[-1], family.patch_of(denoiser_of(pipe)))
    return math.lcm(family.side_divisor_px, latent_side_px(pipe.vae) * latents)
