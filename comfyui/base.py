"""Load a small diffusers base, such as the embedded default, onto ComfyUI's own U-Net.

ComfyUI's checkpoint loaders know the sizes of the released models only. A base of the same layout and another size,
as one trains from nothing, is loaded here.
"""

from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.errors import UnsupportedPipelineError

from .names import comfy_config, comfy_state_dict

_PREDICTIONS = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}
_COMFY_GROUPS = 32  # of every GroupNorm in ComfyUI's U-Net


def load_base(name_or_path: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """Return ComfyUI's MODEL, VAE and one empty LATENT of the base's own size, in float32.

    Raises:
        UnsupportedPipelineError: ComfyUI's U-Net cannot take this form, or its sampling this schedule.
        LLMDiffError: the pipeline cannot be loaded.
    """
    pipe = load_base_pipeline(name_or_path, dtype=torch.float32)
    unet, vae = pipe.unet, pipe.vae
    size = unet.config.sample_size
    latent = torch.zeros(1, unet.config.in_channels, size, size, device=memory.intermediate_device())
    return _model(unet, pipe.scheduler.config, vae.config.scaling_factor), _vae(vae), {"samples": latent}


def _model(unet: Any, schedule: Any, scaling_factor: float) -> ModelPatcher:
    prediction = schedule.prediction_type
    if prediction not in _PREDICTIONS or schedule.beta_schedule != "scaled_linear":
        raise UnsupportedPipelineError(
            f"the base's scheduler has prediction_type {prediction!r} and beta_schedule {schedule.beta_schedule!r}, "
            f"expected one of {', '.join(_PREDICTIONS)} and 'scaled_linear'"
        )
    config = comfy.supported_models_base.BASE({**comfy_config(unet.config), "dtype": torch.float32})
    config.unet_config.update(comfy_config(unet.config))  # BASE sets a head width of its own
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.latent_format.scale_factor = scaling_factor
    config.latent_format.latent_channels = unet.config.in_channels
    config.sampling_settings = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.num_train_timesteps,
        "zsnr": bool(schedule.get("rescale_betas_zero_snr")),
    }
    large = unet.config.get("addition_embed_type") == "text_time"
    kind = comfy.model_base.SDXL if large else comfy.model_base.BaseModel
    model = kind(config, model_type=_PREDICTIONS[prediction], device=memory.unet_offload_device())
    for module in model.diffusion_model.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups == _COMFY_GROUPS:
            module.num_groups = unet.config.norm_num_groups
    names = list(model.diffusion_model.state_dict())
    model.diffusion_model.load_state_dict(comfy_state_dict(names, unet.state_dict()))
    return ModelPatcher(
        model, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )


class _Autoencoder(nn.Module):
    """A diffusers autoencoder with the two methods that ComfyUI's VAE calls."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.mean  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample  # type: ignore[no-any-return]


def _vae(autoencoder: Any) -> Any:
    # Without weights ComfyUI's VAE is an empty frame; ComfyUI's own autoencoder has a fixed number of groups, and
    # attention in the middle, that a small one lacks.
    vae = comfy.sd.VAE(sd={})
    vae.first_stage_model = _Autoencoder(autoencoder).eval()
    vae.vae_dtype = torch.float32
    vae.device = memory.vae_device()
    vae.output_device = memory.intermediate_device()
    vae.patcher = ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=memory.vae_offload_device()
    )
    vae.latent_channels = autoencoder.config.latent_channels
    vae.upscale_ratio = vae.downscale_ratio = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return vae
