"""NaN and infinite values in an LLM: found while encoding, named, and nothing returned."""

import pytest
import torch

from llmdiff.errors import ConfigError, CorruptWeightsError
from llmdiff.language import ContextEncoding, DecoderLLM

from .conftest import PROMPTS, tiny_llm


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "weight", ["model.layers.2.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"]
)
def test_damaged_weight_is_named_when_encoding(value: float, weight: str) -> None:
    llm = tiny_llm("llama")
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    llm.model.get_parameter(weight).data.view(-1)[5] = value
    for encode in (
        lambda: context.encode(llm, PROMPTS),
        lambda: context.encode(llm, ""),
        lambda: context.calibrate(llm, PROMPTS),
        lambda: llm.block_updates(PROMPTS),
        lambda: llm.last_hidden_states(PROMPTS),
    ):
        with pytest.raises(CorruptWeightsError, match=weight.replace(".", r"\.")) as caught:
            encode()
        assert "\n" not in str(caught.value)
    assert bool((context.score_scale == 1).all())


def test_damage_in_the_final_norm_or_one_embedding() -> None:
    llm = tiny_llm("llama")
    llm.model.model.norm.weight.data[0] = float("nan")
    assert bool(llm.block_updates(PROMPTS).context.isfinite().all())  # the norm is not part of a block
    with pytest.raises(CorruptWeightsError, match=r"model\.norm\.weight"):
        llm.last_hidden_states(PROMPTS)
    llm = tiny_llm("llama")
    token = int(llm.tokenize("!").input_ids[0, 1])
    llm.model.get_input_embeddings().weight.data[token] = float("nan")
    assert bool(llm.block_updates(["a dog"]).context.isfinite().all())
    with pytest.raises(CorruptWeightsError, match="embed_tokens"):
        llm.block_updates(["a dog", "a dog!"])


def test_overflow_of_half_precision_is_not_blamed_on_a_weight() -> None:
    llm = tiny_llm("llama")
    llm.model.model.layers[1].mlp.down_proj.weight.data *= 2e4
    llm.model.model.layers[1].mlp.up_proj.weight.data *= 2e4
    half = DecoderLLM(llm.model.half(), llm.tokenizer, id="tiny-half")
    with pytest.raises(ConfigError, match=r"in block 1 in float16.*load it with dtype=torch\.bfloat16"):
        half.block_updates(PROMPTS)
    assert bool(torch.isfinite(llm.model.lm_head.weight).all())
