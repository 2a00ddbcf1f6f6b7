"""One builder of tiny random pipelines for each family; the transformers among them are built here."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from llmdiff.adapter.families import FAMILIES
from tiny.more_families import MORE_BUILDERS, MORE_OPTIONS
from tiny.pipelines import WORDS, build_sd, build_sdxl, clip_text, tiny_vae, word_tokenizer


def t5_text(width: int = 24) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def flow_vae(latent_channels: int = 4) -> AutoencoderKL:
    return tiny_vae(
        latent_channels,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(4)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=20,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    pipe = PixArtSigmaPipeline(
        transformer=transformer.eval(),
        vae=tiny_vae(),
        text_encoder=t5_text(20),
        tokenizer=word_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_sana() -> SanaPipeline:
    torch.manual_seed(5)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=24,
        sample_size=32,
        qk_norm="rms_norm_across_heads",
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    gemma = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    pipe = SanaPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=Gemma2Model(gemma).eval(),
        tokenizer=word_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(6)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        # As many as the real ones: the inpainting pipeline asks.
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=24,
        caption_projection_dim=24,
        pooled_projection_dim=20,
        out_channels=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(16),
        text_encoder=clip_text(12, CLIPTextModelWithProjection, projection_dim=8),
        tokenizer=word_tokenizer(),
        text_encoder_2=clip_text(12, CLIPTextModelWithProjection, projection_dim=12),
        tokenizer_2=word_tokenizer(),
        # As many use it: without its T5, whose rows are then zeros that the base attends to.
        text_encoder_3=None,
        tokenizer_3=word_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


_FLUX_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 4, 8),
}


def build_flux() -> FluxPipeline:
    torch.manual_seed(7)
    transformer = FluxTransformer2DModel(**_FLUX_SIZES, pooled_projection_dim=20)
    pipe = FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=clip_text(20),
        tokenizer=word_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=word_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_chroma() -> ChromaPipeline:
    torch.manual_seed(20)
    transformer = ChromaTransformer2DModel(
        **_FLUX_SIZES,
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    pipe = ChromaPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=t5_text(),
        tokenizer=word_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# A builder for every row of `families.FAMILIES`, and what its pipelines need to draw at this size.
BUILDERS: dict[str, Any] = {
    "sd": build_sd,
    "sdxl": build_sdxl,
    "pixart": build_pixart,
    "sana": build_sana,
    "sd3": build_sd3,
    "flux": build_flux,
    "chroma": build_chroma,
    **MORE_BUILDERS,
}
# Names of the families that `llmdiff train` trains adapters for.
TRAINABLE = [row.name for row in FAMILIES if row.objective is not None]
DRAW_OPTIONS: dict[str, dict[str, Any]] = {
    "PixArtSigmaPipeline": {"use_resolution_binning": False},
    "SanaPipeline": {
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "height": 32,
        "width": 32,
    },
    "FluxPipeline": {"height": 16, "width": 16},
    "ChromaPipeline": {"height": 16, "width": 16, "max_sequence_length": 24},
    **MORE_OPTIONS,
}


def drawn(pipe: Any, prompt: Any = "a cat", *, steps: int = 2, seed: int = 5, **more: Any) -> torch.Tensor:
    """Draw a few steps from a fixed seed; images as float tensors (B, H, W, 3), a video's frames below each other."""
    more = DRAW_OPTIONS.get(type(pipe).__name__, {}) | more
    copies = more.get("num_images_per_prompt", more.get("num_videos_per_prompt", 1))
    count = (len(prompt) if isinstance(prompt, list) else 1) * copies
    if prompt is not None:
        more["prompt"] = prompt
    # One generator per image: the same seed then gives the same start, alone or in a batch.
    generator = [torch.Generator().manual_seed(seed) for _ in range(count)]
    result = pipe(num_inference_steps=steps, generator=generator, output_type="np", **more)
    images = torch.as_tensor(result.images if hasattr(result, "images") else result.frames)
    return images.flatten(1, 2) if images.ndim == 5 else images
