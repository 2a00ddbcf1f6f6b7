"""A denoiser of any family, called in training as its pipeline calls it in drawing; its VAE, the same way."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmdiff.adapter.families import FAMILIES, Family, denoiser_of, family_of
from llmdiff.errors import UnsupportedPipelineError


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that some denoisers are told of each picture. Units: pixels, (height, width) or (top, left).

    Fields:
        original: of the picture as it was found; crop: where the cut begins; target: of the cut.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


def check_trainable(pipe: Any) -> None:
    """Check that adapters for this pipeline can be trained here.

    Raises:
        UnsupportedPipelineError: its family has no training objective.
    """
    family = family_of(pipe)
    if family.objective is None:
        trained = ", ".join(row.title for row in FAMILIES if row.objective is not None)
        raise UnsupportedPipelineError(
            f"the base is of the family {family.title}, for which llmdiff train has no objective: an adapter attaches "
            f"to it, and is trained in a loop of your own; choose a base of {trained}"
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
    dtype = denoiser.dtype
    latents, states = latents.to(dtype), states.to(latents.device, dtype)
    pooled = None if pooled is None else pooled.to(latents.device, dtype)
    common: dict[str, Any] = {"encoder_hidden_states": states, "return_dict": False}
    if family.name == "flux":
        return _denoise_flux(denoiser, latents, timesteps, pooled, common)
    if family.name == "sd3":
        output = denoiser(latents, timestep=timesteps, pooled_projections=pooled, **common)[0]
    elif family.name == "sana":
        scaled = timesteps * denoiser.config.timestep_scale
        output = denoiser(latents, timestep=scaled, encoder_attention_mask=_mask(states), **common)[0]
    elif family.name == "pixart":
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if denoiser.config.use_additional_conditions:
            target = torch.tensor([size.target for size in sizes], dtype=dtype, device=latents.device)
            added = {"resolution": target, "aspect_ratio": target[:, :1] / target[:, 1:]}
        output = denoiser(
            latents,
            timestep=timesteps,
            encoder_attention_mask=_mask(states),
            added_cond_kwargs=added,
            **common,
        )[0]
        # The second half, where there is one, predicts a variance that samplers ignore.
        output = output[:, : latents.shape[1]]
    else:
        added_to_time = None
        if pooled is not None:
            ids = [(*size.original, *size.crop, *size.target) for size in sizes]
            added_to_time = {
                "text_embeds": pooled,
                "time_ids": torch.tensor(ids, device=latents.device).to(dtype),
            }
        output = denoiser(latents, timesteps, added_cond_kwargs=added_to_time, **common)[0]
    result: Tensor = output
    return result


def encode_pictures(vae: Any, pixels: Tensor) -> Tensor:
    """Return pictures as scaled latents, the middle of the VAE's posterior: the same at any time.

    Shapes: pixels (B, 3, H, W) in -1..1; result (B, C, h, w) float32.
    """
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled: Tensor = (latents.float() - shift) * vae.config.scaling_factor
    return scaled


def side_multiple_px(pipe: Any, family: Family) -> int:
    """Return what a picture's sides have to be divisible by for this pipeline. Units: pixels."""
    levels = getattr(pipe.vae.config, "block_out_channels", None)
    scale = 2 ** (len(levels or pipe.vae.config.encoder_block_out_channels) - 1)
    config: Any = denoiser_of(pipe).config
    if getattr(pipe, "unet", None) is not None:
        return int(scale * 2 ** (len(config.block_out_channels) - 1))
    return int(scale * (2 if family.name == "flux" else config.patch_size))


def _mask(states: Tensor) -> Tensor:
    """A mask that the adapter's hook replaces: rows of states say themselves whether they are padding."""
    return torch.ones(states.shape[:2], device=states.device, dtype=torch.long)


def _denoise_flux(
    denoiser: Any, latents: Tensor, timesteps: Tensor, pooled: Tensor | None, common: dict[str, Any]
) -> Tensor:
    from diffusers import FluxPipeline

    pipeline: Any = FluxPipeline
    count, channels, height, width = latents.shape
    packed = pipeline._pack_latents(latents, count, channels, height, width)
    image_ids = pipeline._prepare_latent_image_ids(
        count, height // 2, width // 2, latents.device, latents.dtype
    )
    text_ids = torch.zeros(common["encoder_hidden_states"].shape[1], 3).to(latents)
    guidance = torch.ones(count).to(latents) if denoiser.config.guidance_embeds else None
    output = denoiser(
        packed,
        timestep=timesteps / 1000,
        pooled_projections=pooled,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=guidance,
        **common,
    )[0]
    unpacked: Tensor = pipeline._unpack_latents(output, height, width, 1)
    return unpacked
