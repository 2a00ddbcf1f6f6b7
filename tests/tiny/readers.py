"""Tiny random readers of every kind that rivals read prompts with."""

from typing import Any

import torch
from transformers import BertConfig, BertModel, T5Config, T5Model

from llmdiff_lab.rivals.encoder import EncoderStates
from tiny.pipelines import WORDS, word_tokenizer

PROMPTS = ["a red cat left of the dog", "two apple", ""]


def build_bert() -> EncoderStates:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    return EncoderStates(BertModel(config), word_tokenizer(), id="tiny-bert")


def build_t5() -> EncoderStates:
    torch.manual_seed(6)
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return EncoderStates(T5Model(config), word_tokenizer(), id="tiny-t5")


def shaken(module: torch.nn.Module) -> Any:
    """The module with every parameter random: zeros and ones hide errors."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def layer_outputs(llm: Any, prompt: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x_0 .. x_L of one prompt, BOS first: the blocks run one after the other, by hand; and the last hidden state."""
    ids = torch.tensor([[1, *llm.tokenizer(prompt, add_special_tokens=False).input_ids]])
    outputs = []
    handles = [block.register_forward_hook(lambda *a: outputs.append(a[-1])) for block in llm.blocks]
    result = llm.model.model(input_ids=ids, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    outputs = [out[0] if isinstance(out, tuple) else out for out in outputs]
    return [result.hidden_states[0][0], *(out[0] for out in outputs)], result.last_hidden_state[0]


def normed(x: torch.Tensor) -> torch.Tensor:
    """LayerNorm by hand."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
