"""The sizes of models as their makers publish them, for plans made where the Hub cannot be reached.

Each is the `config.json` of the model's repository on the Hub, without what makes no difference to its size. The
numbers of parameters that follow from them are the published ones (tests/training/test_published_sizes.py).
"""

from collections.abc import Mapping
from typing import Any

Sizes = Mapping[str, Any]

# Touvron et al. 2023 (Llama 2), table 1 of its model card; Grattafiori et al. 2024 (Llama 3), table 3; Yang et al.
# 2025 (Qwen3), table 1; Gemma Team 2024 (Gemma 2), table 1; Allal et al. 2025 (SmolLM2).
LLMS: Mapping[str, Sizes] = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "google/gemma-2-2b-it": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}

# Kingma-style autoencoder of Rombach et al. 2022.
_VAE: Sizes = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# Radford et al. 2021 (ViT-L/14) and OpenCLIP's ViT-bigG/14; Raffel et al. 2020, T5 v1.1 XXL.
_CLIP_L: Sizes = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_BIG_G: Sizes = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5_XXL: Sizes = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}

# A pipeline's class, and each part's library, class and sizes, as `model_index.json` has them.
PIPELINES: Mapping[str, tuple[str, Mapping[str, tuple[str, str, Sizes]]]] = {
    # Rombach et al. 2022.
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        {
            "unet": (
                "diffusers",
                "UNet2DConditionModel",
                {
                    "sample_size": 64,
                    "cross_attention_dim": 768,
                    "attention_head_dim": 8,
                    "block_out_channels": [320, 640, 1280, 1280],
                    "layers_per_block": 2,
                },
            ),
            "vae": ("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": ("transformers", "CLIPTextModel", _CLIP_L),
            "safety_checker": (
                "stable_diffusion",
                "StableDiffusionSafetyChecker",
                {
                    "projection_dim": 768,
                    "vision_config": {
                        "hidden_size": 1024,
                        "intermediate_size": 4096,
                        "num_hidden_layers": 24,
                        "num_attention_heads": 16,
                        "patch_size": 14,
                        "image_size": 224,
                    },
                },
            ),
        },
    ),
    # Podell et al. 2023 (arXiv 2307.01952), table 1.
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "StableDiffusionXLPipeline",
        {
            "unet": (
                "diffusers",
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "cross_attention_dim": 2048,
                    "attention_head_dim": [5, 10, 20],
                    "block_out_channels": [320, 640, 1280],
                    "layers_per_block": 2,
                    "transformer_layers_per_block": [1, 2, 10],
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                },
            ),
            "vae": ("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": ("transformers", "CLIPTextModel", _CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _CLIP_BIG_G),
        },
    ),
    # Chen et al. 2024 (arXiv 2403.04692).
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (
        "PixArtSigmaPipeline",
        {
            "transformer": (
                "diffusers",
                "PixArtTransformer2DModel",
                {
                    "sample_size": 128,
                    "patch_size": 2,
                    "in_channels": 4,
                    "out_channels": 8,
                    "num_layers": 28,
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "cross_attention_dim": 1152,
                    "caption_channels": 4096,
                    "use_additional_conditions": False,
                },
            ),
            "vae": ("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": ("transformers", "T5EncoderModel", _T5_XXL),
        },
    ),
    # Esser et al. 2024 (arXiv 2403.03206), depth 24.
    "stabilityai/stable-diffusion-3-medium-diffusers": (
        "StableDiffusion3Pipeline",
        {
            "transformer": (
                "diffusers",
                "SD3Transformer2DModel",
                {
                    "sample_size": 128,
                    "patch_size": 2,
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_layers": 24,
                    "num_attention_heads": 24,
                    "attention_head_dim": 64,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 192,
                },
            ),
            "vae": (
                "diffusers",
                "AutoencoderKL",
                {**_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
            ),
            "text_encoder": ("transformers", "CLIPTextModelWithProjection", _CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _CLIP_BIG_G),
            "text_encoder_3": ("transformers", "T5EncoderModel", _T5_XXL),
        },
    ),
}
