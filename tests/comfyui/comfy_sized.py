"""Tiny random pipelines of a form that ComfyUI can take, and where ComfyUI is."""

import os
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from tiny.pipelines import clip_text, scheduler, tiny_vae, word_tokenizer
from transformers import CLIPTextModelWithProjection

HOME = os.environ.get("LLMDIFF_COMFYUI")

# ComfyUI's U-Net is built with 32 groups, and its ControlNets with heads of 64.
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (64, 128),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "attention_head_dim": (1, 2),
    "cross_attention_dim": 24,
}


def comfy_sized_sd() -> StableDiffusionPipeline:
    """A tiny Stable Diffusion whose U-Net has a form that ComfyUI's can take."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        **_UNET,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=clip_text(24),
        tokenizer=word_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def comfy_sized_sdxl(pooled: int = 20) -> StableDiffusionXLPipeline:
    """The same for Stable Diffusion XL, whose sizes ComfyUI embeds in 256 numbers each."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        **_UNET,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled + 6 * 256,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=clip_text(12),
        text_encoder_2=clip_text(12, CLIPTextModelWithProjection, projection_dim=pooled),
        tokenizer=word_tokenizer(),
        tokenizer_2=word_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler(),
        add_watermarker=False,
    )
