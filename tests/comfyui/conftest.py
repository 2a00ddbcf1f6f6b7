"""ComfyUI itself, where LLMDIFF_COMFYUI names a checkout of it; tests that need it are skipped elsewhere."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
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


@pytest.fixture(scope="session")
def comfy() -> Any:
    """ComfyUI's modules, on the CPU."""
    if HOME is None:
        pytest.skip("LLMDIFF_COMFYUI names no checkout of ComfyUI")
    assert (Path(HOME) / "comfyui_version.py").is_file(), HOME
    sys.path.append(HOME)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import folder_paths

    from comfyui import base, encoding, folders, model

    return SimpleNamespace(
        sample=comfy.sample,
        samplers=comfy.samplers,
        sd=comfy.sd,
        folder_paths=folder_paths,
        base=base,
        encoding=encoding,
        folders=folders,
        model=model,
    )


@pytest.fixture(params=["sd", "sdxl"])
def sized_pipe(request: pytest.FixtureRequest) -> Any:
    return {"sd": comfy_sized_sd, "sdxl": comfy_sized_sdxl}[request.param]()
