"""LLMs of published sizes with random weights, and tiny ones of the same classes."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from tiny_models import word_tokenizer

from llmdiff.language import DecoderLLM

Config = Mapping[str, Any]

LLMS: Mapping[str, tuple[str, Config]] = {
    "Qwen3-0.6B": (
        "Qwen3Config",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-4B": (
        "Qwen3Config",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.1-8B": (
        "LlamaConfig",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
}
_TINY_LLM: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 512,
}


def built(device: str, dtype: torch.dtype, make: Any) -> Any:
    """Return the module that `make` creates, with random weights on the device and in the dtype."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)


def build_llm(name: str, device: str, dtype: torch.dtype, *, quick: bool) -> DecoderLLM:
    """Return a random LLM of this published size, with a tokenizer for the benchmarks' words."""
    kind, sizes = LLMS[name]
    config: Any = getattr(transformers, kind)(**sizes, bos_token_id=0, eos_token_id=1)
    for key, value in (_TINY_LLM if quick else {}).items():
        setattr(config, key, value)
    if quick and hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    model = built(device, dtype, lambda: transformers.AutoModelForCausalLM.from_config(config))
    return DecoderLLM(model, word_tokenizer(), id=name)
