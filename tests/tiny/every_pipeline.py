"""Tiny random pipelines of any diffusers class whose denoiser is one of a family's, made of that family's parts."""

import inspect
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tiny.families import BUILDERS, DRAW_OPTIONS

# What a class wants of its denoiser beside what its family's text-to-image pipeline has.
ALTERED: dict[str, dict[str, Any]] = {
    "FluxControlPipeline": {"in_channels": 32, "out_channels": 16},
    "FluxControlImg2ImgPipeline": {"in_channels": 32, "out_channels": 16},
    "FluxControlInpaintPipeline": {"in_channels": 32, "out_channels": 16},
    "FluxFillPipeline": {"in_channels": 48, "out_channels": 16},
    "LatentConsistencyModelPipeline": {"time_cond_proj_dim": 8},
    "LatentConsistencyModelImg2ImgPipeline": {"time_cond_proj_dim": 8},
    "StableDiffusionGLIGENPipeline": {"attention_type": "gated"},
    "CogView4ControlPipeline": {"in_channels": 8, "out_channels": 4},
    "StableDiffusionInstructPix2PixPipeline": {"in_channels": 8},
    "StableDiffusionXLInstructPix2PixPipeline": {"in_channels": 8},
    "StableDiffusionLatentUpscalePipeline": {"in_channels": 8},
    "StableDiffusionDepth2ImgPipeline": {"in_channels": 5},
    "StableDiffusionControlNetXSPipeline": {"layers_per_block": 2},
    "StableDiffusionXLControlNetXSPipeline": {"layers_per_block": 2},
    "StableDiffusionUpscalePipeline": {"in_channels": 7, "num_class_embeds": 1000},
}
SCHEDULERS: dict[str, Any] = {
    "LatentConsistencyModelPipeline": diffusers.LCMScheduler,
    "LatentConsistencyModelImg2ImgPipeline": diffusers.LCMScheduler,
    "SanaSprintImg2ImgPipeline": diffusers.SCMScheduler,
    "StableDiffusionLatentUpscalePipeline": diffusers.EulerDiscreteScheduler,
}
NOT_GIVEN = object()


def _picture() -> Image.Image:
    return Image.new("RGB", (32, 32), (90, 60, 200))


def _frames(count: int = 2) -> list[Image.Image]:
    return [_picture()] * count


def _larger() -> dict[str, Any]:
    return {"image": torch.rand(1, 3, 64, 64), "height": 64, "width": 64}


# What a class is asked with, where it is not what all are.
ASKED: dict[str, Any] = {
    "AnimateDiffControlNetPipeline": lambda: {"conditioning_frames": _frames(), "num_frames": 2},
    "AnimateDiffVideoToVideoPipeline": lambda: {"video": _frames(), "strength": 1.0},
    "AnimateDiffVideoToVideoControlNetPipeline": lambda: {
        "video": _frames(),
        "conditioning_frames": _frames(),
    },
    "AnimateDiffSparseControlNetPipeline": lambda: {"conditioning_frames": _frames(1), "num_frames": 2},
    "Flux2Pipeline": lambda: {"image": NOT_GIVEN, "height": 16, "width": 16},
    "Flux2KleinPipeline": lambda: {"image": NOT_GIVEN},
    "Flux2KleinKVPipeline": lambda: {"image": _picture().resize((64, 64)), "height": 16, "width": 16},
    "FluxControlNetImg2ImgPipeline": lambda: {"control_mode": 0},
    "FluxControlNetInpaintPipeline": lambda: {"control_mode": 0},
    # One frame alone is the picture that they are given.
    "LTXImageToVideoPipeline": lambda: {"num_frames": 9},
    "LTXConditionPipeline": lambda: {"num_frames": 9},
    "LTXI2VLongMultiPromptPipeline": lambda: {"num_frames": 9},
    "QwenImageControlNetInpaintPipeline": lambda: {
        "control_mask": torch.ones(1, 1, 32, 32),
        "height": 32,
        "width": 32,
    },
    "StableDiffusion3ControlNetInpaintingPipeline": lambda: {"control_mask": torch.ones(1, 1, 32, 32)},
    "StableDiffusionControlNetXSPipeline": _larger,
    "StableDiffusionXLControlNetXSPipeline": _larger,
    "StableDiffusionDepth2ImgPipeline": lambda: {"depth_map": torch.rand(1, 32, 32)},
    "StableDiffusionGLIGENPipeline": lambda: {
        "gligen_phrases": ["cat"],
        "gligen_boxes": [[0.1, 0.1, 0.5, 0.5]],
    },
    "StableDiffusionLDM3DPipeline": lambda: {"output_type": "np"},
    "StableDiffusionXLAdapterPipeline": lambda: {"image": torch.rand(1, 3, 32, 32)},
    "ZImageOmniPipeline": lambda: {"image": NOT_GIVEN},
}
# The classes that are accepted and drawn with in the tests, by family.
ACCEPTED: dict[str, tuple[str, ...]] = {
    "auraflow": ("AuraFlowPipeline",),
    "chroma": (
        "ChromaImg2ImgPipeline",
        "ChromaPipeline",
    ),
    "cogview4": (
        "CogView4ControlPipeline",
        "CogView4Pipeline",
    ),
    "flux": (
        "FluxControlImg2ImgPipeline",
        "FluxControlInpaintPipeline",
        "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxControlPipeline",
        "FluxFillPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxKontextInpaintPipeline",
        "FluxKontextPipeline",
        "FluxPipeline",
    ),
    "flux2": (
        "Flux2KleinInpaintPipeline",
        "Flux2KleinKVPipeline",
        "Flux2KleinPipeline",
        "Flux2Pipeline",
    ),
    "hunyuan-image": ("HunyuanImagePipeline",),
    "latte": ("LattePipeline",),
    "ltx": (
        "LTXConditionPipeline",
        "LTXI2VLongMultiPromptPipeline",
        "LTXImageToVideoPipeline",
        "LTXPipeline",
    ),
    "lumina2": ("Lumina2Pipeline",),
    "pixart": (
        "PixArtAlphaPipeline",
        "PixArtSigmaPAGPipeline",
        "PixArtSigmaPipeline",
    ),
    "qwen-image": (
        "QwenImageControlNetInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImagePipeline",
    ),
    "sana": (
        "SanaControlNetPipeline",
        "SanaPAGPipeline",
        "SanaPipeline",
    ),
    "sana-sprint": (
        "SanaSprintImg2ImgPipeline",
        "SanaSprintPipeline",
    ),
    "sana-video": (
        "SanaImageToVideoPipeline",
        "SanaVideoPipeline",
    ),
    "sd": (
        "AltDiffusionImg2ImgPipeline",
        "AltDiffusionPipeline",
        "AnimateDiffControlNetPipeline",
        "AnimateDiffPAGPipeline",
        "AnimateDiffPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline",
        "AnimateDiffVideoToVideoPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
        "PIAPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetXSPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionGLIGENPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionLDM3DPipeline",
        "StableDiffusionModelEditingPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPanoramaPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionSAGPipeline",
        "StableDiffusionUpscalePipeline",
    ),
    "sd3": (
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3Pipeline",
    ),
    "sdxl": (
        "AnimateDiffSDXLPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetXSPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPipeline",
    ),
    "wan": ("WanPipeline",),
    "z-image": (
        "ZImageImg2ImgPipeline",
        "ZImageInpaintPipeline",
        "ZImagePipeline",
    ),
}
_PLACES = ("unet", "transformer")


def config_of(model: Any) -> dict[str, Any]:
    """The arguments that a model was made with."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def build(name: str, family: str) -> Any:
    """A pipeline of this class, made of the parts of a family's."""
    made = getattr(diffusers, name)
    pipe = BUILDERS[family]()
    if type(pipe) is made:
        return pipe
    torch.manual_seed(8)
    place = next(place for place in _PLACES if hasattr(pipe, place))
    parts = dict(pipe.components)
    if name in ALTERED:
        denoiser = parts[place]
        parts[place] = type(denoiser)(**{**config_of(denoiser), **ALTERED[name]}).eval()
    if name in SCHEDULERS:
        parts["scheduler"] = SCHEDULERS[name]()
    parts |= _more_parts(name, parts, place)
    wanted = inspect.signature(made.__init__).parameters
    given = {
        key: parts.get(key)
        for key in wanted
        if key in parts or wanted[key].default is inspect.Parameter.empty
    }
    for key in ("self", "kwargs", "args"):
        given.pop(key, None)
    for key, value in (
        ("requires_safety_checker", False),
        ("add_watermarker", False),
        ("is_distilled", False),
    ):
        if key in wanted:
            given[key] = value
    other = made(**given)
    for key in ("prompt_template_encode_start_idx", "tokenizer_max_length"):
        if hasattr(pipe, key) and hasattr(other, key):
            setattr(other, key, getattr(pipe, key))
    other.set_progress_bar_config(disable=True)
    return other


def _more_parts(name: str, parts: dict[str, Any], place: str) -> dict[str, Any]:
    """The models that a class has beside those of its family's text-to-image pipeline."""
    more: dict[str, Any] = {}
    denoiser = parts[place]
    if name.startswith(("AnimateDiff", "PIA")):
        more["motion_adapter"] = diffusers.MotionAdapter(
            block_out_channels=denoiser.config.block_out_channels,
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
            **({"conv_in_channels": 9} if name.startswith("PIA") else {}),
        ).eval()
    if "ControlNetXS" in name:
        more["controlnet"] = diffusers.ControlNetXSAdapter.from_unet(denoiser, size_ratio=1).eval()
    elif "SparseControlNet" in name:
        more["controlnet"] = diffusers.SparseControlNetModel(
            block_out_channels=denoiser.config.block_out_channels,
            down_block_types=denoiser.config.down_block_types,
            cross_attention_dim=denoiser.config.cross_attention_dim,
            attention_head_dim=denoiser.config.attention_head_dim,
            layers_per_block=1,
            norm_num_groups=4,
            conditioning_embedding_out_channels=(8, 8),
        ).eval()
    elif "ControlNet" in name:
        more["controlnet"] = controlnet_for(name, denoiser)
    if "Adapter" in name:
        more["adapter"] = diffusers.T2IAdapter(
            in_channels=3,
            channels=list(denoiser.config.block_out_channels),
            num_res_blocks=1,
            downscale_factor=2,
            adapter_type="full_adapter_xl" if "XL" in name else "full_adapter",
        ).eval()
    if "ControlNetXS" in name:
        # Its control picture is always eight times the size of the latents.
        more["vae"] = diffusers.AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ).eval()
    if name.startswith("QwenImageEdit"):
        # They draw at a megapixel, and read pictures with a processor that is not needed under an LLM.
        more["vae"] = diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval()
        more |= {"text_encoder": None, "tokenizer": None}
    if name == "StableDiffusionUpscalePipeline":
        more["low_res_scheduler"] = diffusers.DDPMScheduler()
    if name == "StableDiffusionDepth2ImgPipeline":
        more["depth_estimator"] = None
    return more


def controlnet_for(name: str, denoiser: Any) -> Any:
    """A ControlNet of the denoiser's kind, whose outputs are not zero."""
    if isinstance(denoiser, diffusers.UNet2DConditionModel):
        kind: Any = diffusers.ControlNetUnionModel if "Union" in name else diffusers.ControlNetModel
        config = config_of(denoiser)
        wanted = inspect.signature(kind.__init__).parameters
        taken = {key: value for key, value in config.items() if key in wanted}
        union = (
            {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8} if "Union" in name else {}
        )
        net = kind(**taken, **union, conditioning_embedding_out_channels=(8, 8))
    else:
        kinds = {
            "FluxTransformer2DModel": diffusers.FluxControlNetModel,
            "SD3Transformer2DModel": diffusers.SD3ControlNetModel,
            "SanaTransformer2DModel": diffusers.SanaControlNetModel,
            "QwenImageTransformer2DModel": diffusers.QwenImageControlNetModel,
        }
        kind = kinds[type(denoiser).__name__]
        wanted = inspect.signature(kind.__init__).parameters
        config = {key: value for key, value in config_of(denoiser).items() if key in wanted}
        more = {"extra_conditioning_channels": 1} if "Inpainting" in name else {}
        more |= {"extra_condition_channels": 4} if name == "QwenImageControlNetInpaintPipeline" else {}
        net = kind(**config, **more)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net.eval()


def asked(pipe: Any, **more: Any) -> dict[str, Any]:
    """Everything that such a pipeline may want to be asked with, small."""
    made = type(pipe)
    wanted = inspect.signature(made.__call__).parameters
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"image": picture, "control_image": picture, "num_inference_steps": 2}
    given |= {"mask_image": torch.ones(1, 1, 32, 32), "height": 32, "width": 32, "strength": 1.0}
    given |= {"output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    given |= {"max_sequence_length": 16, "num_frames": 1}
    given |= DRAW_OPTIONS.get(made.__name__, {})
    given |= {"use_resolution_binning": False, "complex_human_instruction": None, "clean_caption": False}
    given |= {"_auto_resize": False, "max_area": 32 * 32, "intermediate_timesteps": None, "control_mode": 0}
    given |= ASKED.get(made.__name__, lambda: {})() | more
    return {key: value for key, value in given.items() if key in wanted and value is not NOT_GIVEN}


def pixels(drawn: Any) -> torch.Tensor:
    """What a pipeline has drawn, as one tensor."""
    if isinstance(drawn, tuple):
        found = drawn[0]
    else:
        found = next(getattr(drawn, name) for name in ("images", "frames", "rgb") if hasattr(drawn, name))
    if isinstance(found, list):
        found = np.stack([np.asarray(picture) for picture in found])
    return torch.as_tensor(found).float()
