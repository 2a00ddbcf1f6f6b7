"""Tiny configurations of every causal language model that transformers has, made from the names of their settings."""

import inspect
from typing import Any

import torch
from tiny.llm_kinds import TINY_VOCAB_SIZE
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

MOST_PARAMETERS = 40_000_000

# Settings by the names that transformers gives them, most common first.
_SIZES: dict[str, Any] = {
    "vocab_size": TINY_VOCAB_SIZE,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "decoder_hidden_size"), 32
    ),
    **dict.fromkeys(("input_embedding_size", "word_embed_proj_dim", "embedding_size", "hidden_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "dim_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("decoder_layers", "num_encoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(
        ("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "d_kv", "dim_head", "attention_head_dim", "v_head_dim", "qk_nope_head_dim"), 8
    ),
    **dict.fromkeys(("global_head_dim", "swa_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(("index_n_heads", "n_group", "topk_group", "o_groups"), 2),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), 4
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 256),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 4),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "mamba_d_head", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), 0),
    "eos_token_id": 1,
    "is_decoder": True,
    "first_k_dense_replace": 1,
}

_FULL, _SLIDING = "full_attention", "sliding_attention"
_UNGROUPED = ("AXK1", "AXK2", "DeepseekV2", "DeepseekV32", "DeepseekV3", "Glm4MoeLite", "GlmMoeDsa", "HYV4")
_UNGROUPED += ("KimiLinear", "MiniCPM3", "Youtu")

# What some classes want besides, or of their own; their values agree with each other in ways no name tells. Blocks
# that are of several kinds are all there.
_OWN: dict[str, dict[str, Any]] = {
    **{f"{name}Config": {"num_key_value_heads": 4} for name in _UNGROUPED},
    **{
        f"{name}TextConfig": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
        for name in ("Qwen2VL", "Qwen2_5_VL", "Glm4v")
    },
    "BambaConfig": {"attn_layer_indices": [1, 3]},
    "BltConfig": {"encoder_hash_byte_group_vocab": 64},
    "CohereCompassTextConfig": {
        "layer_types": [_FULL] * 4,
        "rope_parameters": {_FULL: {"rope_type": "default", "rope_theta": 1e4}},
    },
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "Dots1Config": {"n_shared_experts": 1},
    "Dots3NoteTextConfig": {
        "num_key_value_heads": 4,
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
        **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank"), 16),
        **dict.fromkeys(("swa_qk_nope_head_dim", "swa_v_head_dim"), 8),
        "swa_head_dim": 12,
    },
    "FalconH1Config": {"mamba_d_ssm": 64},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2]]},
    "Gemma3nTextConfig": {"layer_types": [_SLIDING, _FULL] * 2, "num_kv_shared_layers": 2},
    "Gemma4TextConfig": {
        "vocab_size_per_layer_input": TINY_VOCAB_SIZE,
        "layer_types": [_SLIDING, _FULL] * 2,
        "num_kv_shared_layers": 2,
    },
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"] * 2, "mamba_d_head": "auto"},
    "HrmTextConfig": {"num_layers_per_stack": None},
    "InklingTextConfig": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "LongcatFlashConfig": {"num_layers": 4, "head_dim": 4, "num_key_value_heads": 4},
    "Lfm2Config": {"layer_types": ["conv", _FULL] * 2},
    "Lfm2MoeConfig": {"layer_types": ["conv", _FULL] * 2},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "Qwen4ExpTextConfig": {
        **dict.fromkeys(("indexer_n_heads", "indexer_kv_heads"), 1),
        **dict.fromkeys(("indexer_head_dim", "indexer_budget", "indexer_compress_ratio"), 8),
    },
    "ReformerConfig": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "XmodConfig": {"default_language": "en_XX"},
    "ZambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 6},
    "Zamba2Config": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "ZayaConfig": {"num_experts_per_tok": 1},
}


def causal_configs() -> list[type[Any]]:
    """Every configuration class of transformers that has a causal language model, by name."""
    # Other tests register classes of their own.
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING.keys())
    kinds = [kind for kind in known if kind.__module__.startswith("transformers.")]
    return sorted(kinds, key=lambda kind: kind.__name__)


def tiny_config_of(kind: type[Any], **changes: Any) -> Any:
    """A tiny configuration of a class; with parts that are configurations themselves, those too."""
    parameters = set(inspect.signature(kind).parameters)
    names = parameters | set(getattr(kind, "attribute_map", {})) | set(getattr(kind, "__annotations__", {}))
    sizes = {name: value for name, value in _SIZES.items() if name in names}
    for name, part in getattr(kind, "sub_configs", {}).items():
        if part in (AutoConfig, PreTrainedConfig):  # which one only a whole configuration says
            part = type(getattr(kind(), name, None))
        if isinstance(part, type) and issubclass(part, PreTrainedConfig) and part is not PreTrainedConfig:
            sizes[name] = tiny_config_of(part).to_dict()
    return kind(**{**sizes, **_OWN.get(kind.__name__, {}), **changes})


def tiny_model_of(config: Any) -> Any:
    """A random model of it, norms and biases too.

    Raises:
        ValueError: it is not tiny after all.
    """
    kind = (
        MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) or MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    )
    if kind.config_class is not type(config):  # it is a part of the model
        parts = (getattr(config, name) for name in config.sub_configs)
        config = next((part for part in parts if isinstance(part, kind.config_class)), config)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.0 if not parameter.detach().any() else 1.0, 0.2)
        else:
            nn.init.normal_(parameter, 0.0, 0.1)
    return model
