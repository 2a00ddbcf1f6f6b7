"""Denoisers of published sizes with random weights, and tiny ones of the same classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from llm_shapes import built

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A denoiser of published size, how it is drawn with, and the LLM beside it.

    Fields:
        config, tiny: of the denoiser; `tiny` replaces parts of `config`.
        latent: channels and factor of the latents. text: tokens and width of the base's text states; pooled: width.
        steps, side_px: of a picture.
    """

    title: str
    pipeline: str
    denoiser: str
    config: Config
    tiny: Config
    scheduler: str
    llm: str
    text: tuple[int, int]
    tiny_text_width: int
    pooled: tuple[int, int] | None = None
    latent_channels: int = 4
    steps: int = 20
    side_px: int = 1024
    guided: bool = True
    masked: bool = False
    call: Config = field(default_factory=dict)


_UNET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
_TINY_UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8}
_FLOW = "FlowMatchEulerDiscreteScheduler"
_BINNED = {"use_resolution_binning": False}

FAMILIES = (
    Shape(
        title="SD 1.5",
        pipeline="StableDiffusionPipeline",
        denoiser="UNet2DConditionModel",
        config={
            **_UNET,
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        tiny={
            **_TINY_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
        },
        scheduler="DDIMScheduler",
        llm="Qwen3-0.6B",
        text=(77, 768),
        tiny_text_width=32,
        side_px=512,
    ),
    Shape(
        title="SDXL",
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        config={
            **_UNET,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        tiny={
            **_TINY_UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 32,
        },
        scheduler="EulerDiscreteScheduler",
        llm="Qwen3-4B",
        text=(77, 2048),
        tiny_text_width=32,
        pooled=(1280, 1280),
    ),
    Shape(
        title="PixArt-Sigma",
        pipeline="PixArtSigmaPipeline",
        denoiser="PixArtTransformer2DModel",
        config={
            "sample_size": 128,
            "num_layers": 28,
            "patch_size": 2,
            "attention_head_dim": 72,
            "num_attention_heads": 16,
            "in_channels": 4,
            "out_channels": 8,
            "caption_channels": 4096,
            "cross_attention_dim": 1152,
            "norm_type": "ada_norm_single",
            "use_additional_conditions": False,
        },
        tiny={
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "caption_channels": 32,
            "cross_attention_dim": 24,
        },
        scheduler="DPMSolverMultistepScheduler",
        llm="Qwen3-4B",
        text=(300, 4096),
        tiny_text_width=32,
        masked=True,
        call=_BINNED,
    ),
    Shape(
        title="Sana 1.6B",
        pipeline="SanaPipeline",
        denoiser="SanaTransformer2DModel",
        config={"qk_norm": None},
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": 32,
        },
        scheduler="DPMSolverMultistepScheduler",
        llm="Qwen3-4B",
        text=(300, 2304),
        tiny_text_width=32,
        latent_channels=32,
        masked=True,
        call={**_BINNED, "complex_human_instruction": None},
    ),
    Shape(
        title="SD3 medium",
        pipeline="StableDiffusion3Pipeline",
        denoiser="SD3Transformer2DModel",
        config={
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        tiny={
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "joint_attention_dim": 32,
            "caption_projection_dim": 24,
            "pooled_projection_dim": 20,
            "pos_embed_max_size": 16,
        },
        scheduler=_FLOW,
        llm="Llama-3.1-8B",
        text=(333, 4096),
        tiny_text_width=32,
        pooled=(2048, 20),
        latent_channels=16,
        steps=14,
    ),
    Shape(
        title="Flux dev",
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        config={"guidance_embeds": True},
        tiny={
            "in_channels": 64,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 20,
            "axes_dims_rope": (4, 6, 6),
        },
        scheduler=_FLOW,
        llm="Llama-3.1-8B",
        text=(512, 4096),
        tiny_text_width=32,
        pooled=(768, 20),
        latent_channels=16,
        steps=10,
        guided=False,
    ),
)


def build_pipe(shape: Shape, device: str, dtype: torch.dtype, *, quick: bool) -> Any:
    """Return the pipeline with a random denoiser, a tiny VAE of its factor, and no text encoder."""
    config = {**shape.config, **(shape.tiny if quick else {})}
    if quick and shape.title == "SDXL":
        config["projection_class_embeddings_input_dim"] = 6 * 256 + shape.pooled[1] if shape.pooled else 0
    denoiser = built(device, dtype, lambda: getattr(diffusers, shape.denoiser)(**config))
    channels = config.get("in_channels", shape.latent_channels)
    latent = shape.latent_channels if shape.title == "Flux dev" else channels
    parts: dict[str, Any] = {
        "vae": built(device, dtype, lambda: _vae(shape, latent)),
        "scheduler": getattr(diffusers, shape.scheduler)(),
        "text_encoder": None,
        "tokenizer": None,
        "unet" if shape.denoiser.startswith("UNet") else "transformer": denoiser,
    }
    second = {"SDXL": ("_2",), "SD3 medium": ("_2", "_3"), "Flux dev": ("_2",)}.get(shape.title, ())
    parts |= {f"{name}{number}": None for number in second for name in ("text_encoder", "tokenizer")}
    if shape.title == "SD 1.5":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, shape.pipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _vae(shape: Shape, latent: int) -> Any:
    if shape.title == "Sana 1.6B":
        blocks = ("ResBlock",) * 6
        return diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=latent,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8,) * 6,
            decoder_block_out_channels=(8,) * 6,
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=[1] * 6,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        )
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent,
        norm_num_groups=4,
        shift_factor=0.06,
    )


def embeddings(shape: Shape, device: str, dtype: torch.dtype, *, quick: bool) -> dict[str, Any]:
    """Return the base's arguments that replace a prompt."""
    tokens, width = shape.text[0], shape.tiny_text_width if quick else shape.text[1]
    given: dict[str, Any] = {"prompt_embeds": torch.randn(1, tokens, width, device=device, dtype=dtype)}
    if shape.pooled is not None:
        pooled = shape.pooled[1 if quick else 0]
        given["pooled_prompt_embeds"] = torch.randn(1, pooled, device=device, dtype=dtype)
    if shape.masked:
        given["prompt_attention_mask"] = torch.ones(1, tokens, device=device, dtype=torch.long)
    if shape.guided:
        given |= {f"negative_{name}": value for name, value in given.items()}
    return given
