"""The kinds of LLM that are tested, one row each: the tests and the tables of the docs are made from it.

What is refused stands in `refused_llms`; `python tests/docs/kinds_table.py` writes the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TINY_VOCAB_SIZE = 320

_SIZES: Mapping[str, Any] = {
    "vocab_size": TINY_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_WITHOUT_GROUPS = {name: value for name, value in _SIZES.items() if name != "num_key_value_heads"}
_GEMMA = {**_SIZES, "head_dim": 8, "sliding_window": 4}
_GEMMA3_LAYERS = ["sliding_attention"] * 3 + ["full_attention"]
_OPT = {name: value for name, value in _WITHOUT_GROUPS.items() if name != "intermediate_size"}
_GPT2 = {
    "vocab_size": TINY_VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True, kw_only=True)
class LLMKind:
    """One kind of LLM whose blocks' context and lone updates are tested.

    `config_class` is a transformers configuration, `config` its arguments for a tiny model. `trait` says what
    of the kind a block-by-block reading could get wrong. `real_weights` names a model of the kind that the
    tests load with its trained weights, `accelerator` is True where the tests have been seen to pass on one.
    """

    name: str
    title: str
    examples: str
    config_class: str
    config: Mapping[str, Any]
    trait: str
    real_weights: str = ""
    accelerator: bool = False


KINDS: tuple[LLMKind, ...] = (
    LLMKind(
        name="llama",
        title="Llama 2, SmolLM2",
        examples="meta-llama/Llama-2-7b-chat-hf",
        config_class="LlamaConfig",
        config=_SIZES,
        trait="rotary positions, grouped keys and values",
        real_weights="SmolLM2-135M-Instruct (GGUF)",
        accelerator=True,
    ),
    LLMKind(
        name="llama3",
        title="Llama 3",
        examples="meta-llama/Llama-3.1-8B-Instruct",
        config_class="LlamaConfig",
        config={
            **_SIZES,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        trait="scaled rotary positions",
    ),
    LLMKind(
        name="qwen2",
        title="Qwen 2, Qwen 2.5",
        examples="Qwen/Qwen2.5-1.5B-Instruct",
        config_class="Qwen2Config",
        config=_SIZES,
        trait="biases in the attention",
    ),
    LLMKind(
        name="qwen3",
        title="Qwen 3",
        examples="Qwen/Qwen3-1.7B",
        config_class="Qwen3Config",
        config={**_SIZES, "head_dim": 16},
        trait="normed queries and keys",
    ),
    LLMKind(
        name="gemma2",
        title="Gemma 2",
        examples="google/gemma-2-2b-it",
        config_class="Gemma2Config",
        config=_GEMMA,
        trait="scaled embeddings, sliding windows, soft caps, norms after each part",
    ),
    LLMKind(
        name="gemma3",
        title="Gemma 3 (text)",
        examples="google/gemma-3-1b-it",
        config_class="Gemma3TextConfig",
        config={**_GEMMA, "layer_types": _GEMMA3_LAYERS},
        trait="two rotary tables, sliding windows",
    ),
    LLMKind(
        name="mistral",
        title="Mistral",
        examples="mistralai/Mistral-7B-Instruct-v0.3",
        config_class="MistralConfig",
        config={**_SIZES, "sliding_window": 4},
        trait="a sliding window in every block",
    ),
    LLMKind(
        name="mixtral",
        title="Mixtral",
        examples="mistralai/Mixtral-8x7B-Instruct-v0.1",
        config_class="MixtralConfig",
        config={**_SIZES, "num_local_experts": 4},
        trait="experts chosen per token",
    ),
    LLMKind(
        name="phi",
        title="Phi 1, Phi 1.5, Phi 2",
        examples="microsoft/phi-2",
        config_class="PhiConfig",
        config=_SIZES,
        trait="attention and MLP side by side, partly rotary",
    ),
    LLMKind(
        name="phi3",
        title="Phi 3, Phi 4",
        examples="microsoft/Phi-3-mini-4k-instruct",
        config_class="Phi3Config",
        config=_SIZES,
        trait="fused projections",
    ),
    LLMKind(
        name="gpt2",
        title="GPT-2",
        examples="openai-community/gpt2",
        config_class="GPT2Config",
        config=_GPT2,
        trait="learned positions; no BOS of its own, EOS serves",
    ),
    LLMKind(
        name="gpt_neox",
        title="GPT-NeoX (Pythia)",
        examples="EleutherAI/pythia-1.4b",
        config_class="GPTNeoXConfig",
        config=_WITHOUT_GROUPS,
        trait="attention and MLP side by side",
    ),
    LLMKind(
        name="opt",
        title="OPT, norms before",
        examples="facebook/opt-1.3b",
        config_class="OPTConfig",
        config={**_OPT, "ffn_dim": 64, "word_embed_proj_dim": 32},
        trait="learned positions with an offset",
    ),
    LLMKind(
        name="opt_postnorm",
        title="OPT, norms after, with projections",
        examples="facebook/opt-350m",
        config_class="OPTConfig",
        config={**_OPT, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        trait="norms on the residual stream; the last state has another width",
    ),
    LLMKind(
        name="smollm3",
        title="SmolLM3",
        examples="HuggingFaceTB/SmolLM3-3B",
        config_class="SmolLM3Config",
        config={**_SIZES, "no_rope_layer_interval": 2},
        trait="blocks without positions among rotary ones",
    ),
    LLMKind(
        name="olmo2",
        title="OLMo 2",
        examples="allenai/OLMo-2-0425-1B-Instruct",
        config_class="Olmo2Config",
        config=_SIZES,
        trait="norms after attention and MLP, normed queries and keys",
    ),
    LLMKind(
        name="falcon",
        title="Falcon, rotary",
        examples="tiiuae/falcon-7b",
        config_class="FalconConfig",
        config={
            "vocab_size": TINY_VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        trait="one key and value for all heads",
    ),
    LLMKind(
        name="bloom",
        title="Bloom",
        examples="bigscience/bloom-560m",
        config_class="BloomConfig",
        config={
            "vocab_size": TINY_VOCAB_SIZE,
            "hidden_size": 32,
            "n_layer": 4,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        trait="ALiBi: distances from outside the block",
    ),
    LLMKind(
        name="gemma4",
        title="Gemma 4 (text), blocks that share keys",
        examples="google/gemma-4-E2B-it",
        config_class="Gemma4TextConfig",
        config={
            **_GEMMA,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": TINY_VOCAB_SIZE,
        },
        trait="keys and values of another block, an input of its own for every block",
    ),
    LLMKind(
        name="qwen3_5",
        title="Qwen 3.5",
        examples="Qwen/Qwen3.5-0.8B",
        config_class="Qwen3_5TextConfig",
        config={
            **_SIZES,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        trait="linear attention, a state between tokens",
    ),
    LLMKind(
        name="lfm2",
        title="LFM 2",
        examples="LiquidAI/LFM2-350M",
        config_class="Lfm2Config",
        config={**_SIZES, "layer_types": ["conv", "full_attention"] * 2},
        trait="convolutions over tokens",
    ),
)


def kind(name: str) -> LLMKind:
    """Returns the row of that name."""
    return next(row for row in KINDS if row.name == name)


def tiny_config(row: LLMKind) -> Any:
    """Returns the transformers configuration of a tiny model of that kind."""
    import transformers  # slow to import, and the tables need none of it

    return getattr(transformers, row.config_class)(**row.config)
