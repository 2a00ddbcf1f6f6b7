"""The table of kinds: that it is whole, that its matrix is tested, and half precision and bytes per kind."""

import copy
import importlib
import inspect

import pytest
import torch
import transformers
from docs.written import on_page
from tiny import llm_kinds

from docs import kinds_table
from llmdiff.language import ContextEncoding, DecoderLLM

from .conftest import PROMPTS, tiny_config, tiny_model, tiny_tokenizer

# Rounding to bfloat16 is 2^-9 of a value, and four blocks of a random model make more of it.
HALF = {torch.bfloat16: 0.06, torch.float16: 0.01}
BYTES = [
    "a \U0001f427 on \U0001f9ca",
    "雪の中の赤い家",
    "लाल सेब और नीला तारा",
    "a red apple",
]


@pytest.mark.parametrize("check", kinds_table.CHECKS, ids=lambda check: check.title)
def test_every_column_of_the_table_is_a_test_of_every_kind(check: kinds_table.Check) -> None:
    module = importlib.import_module(f"{__package__}.{check.module}")
    assert "any_llm" in inspect.signature(getattr(module, check.test)).parameters


def test_names_and_tiny_models_are_of_their_kind() -> None:
    assert len({row.name for row in llm_kinds.KINDS}) == len(llm_kinds.KINDS)
    for row in llm_kinds.KINDS:
        config = llm_kinds.tiny_config(row)
        assert type(config) is getattr(transformers, row.config_class)
        assert config.num_hidden_layers == 4
        assert config.hidden_size == 32


def test_docs_hold_the_tables() -> None:
    for name, part in kinds_table.parts().items():
        assert on_page(kinds_table.PAGE, name) == part, "run python tests/docs/kinds_table.py"


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_close_and_summed_in_float32(any_llm: DecoderLLM, dtype: torch.dtype) -> None:
    half = DecoderLLM(copy.deepcopy(any_llm.model).to(dtype), any_llm.tokenizer, id="half")
    expected = any_llm.block_updates(PROMPTS, lone="token+bos")
    found = half.block_updates(PROMPTS, lone="token+bos")
    assert half.dtype == dtype
    for name in ("x0", "context", "lone"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < HALF[dtype], name

    context = ContextEncoding(half.num_blocks, half.hidden_size, clip=float("inf"))
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.normal_()
    c = context.encode(half, PROMPTS).states
    assert context.kappa is not None
    exact = found.x0.double()
    exact = exact + torch.einsum("l,lbtd->btd", context.gamma.detach().double(), found.scores.double())
    exact = exact + torch.einsum("l,lbtd->btd", context.kappa.detach().double(), found.lone.double())
    assert c.dtype == torch.float32
    assert float((c - exact).norm() / exact.norm()) < 1e-6


def test_text_split_into_bytes_encodes(any_llm: DecoderLLM) -> None:
    tokens = any_llm.tokenize(BYTES)
    for row, text in enumerate(BYTES):
        ids = tokens.input_ids[row][tokens.token_mask[row]].tolist()
        assert any_llm.tokenizer.decode(ids[1:]) == text
    assert int(tokens.token_mask[1].sum()) > 2 * len(BYTES[1])  # several tokens for a character
    context = ContextEncoding(any_llm.num_blocks, any_llm.hidden_size)
    batch = context.encode(any_llm, BYTES)
    for row, text in enumerate(BYTES):
        found = batch.states[row][batch.token_mask[row]]
        torch.testing.assert_close(found, context.encode(any_llm, text).states[0], atol=1e-4, rtol=1e-4)


def test_cutting_inside_a_character_is_fine(llama: DecoderLLM) -> None:
    context = ContextEncoding(llama.num_blocks, llama.hidden_size, max_length=4)
    with pytest.warns(UserWarning, match="were cut, the first 4 are used"):
        states = context.encode(llama, BYTES[1]).states
    assert states.shape[1] == 5
    assert bool(states.isfinite().all())


def test_eager_attention_gives_the_same(any_llm: DecoderLLM) -> None:
    model = tiny_model(any_llm.model.config, attention="eager")
    model.load_state_dict(any_llm.model.state_dict())
    eager = DecoderLLM(model, any_llm.tokenizer, id="eager").block_updates(PROMPTS, lone="token+bos")
    sdpa = any_llm.block_updates(PROMPTS, lone="token+bos")
    torch.testing.assert_close(eager.context, sdpa.context, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(eager.lone, sdpa.lone, atol=1e-4, rtol=1e-4)


def test_the_language_model_of_gemma3_with_pictures_is_read() -> None:
    text = tiny_config("gemma3")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=1, image_token_index=319
    )
    llm = DecoderLLM(tiny_model(config), tiny_tokenizer(), id="gemma3-pictures")
    assert (llm.num_blocks, llm.hidden_size) == (4, 32)
    alone = llm.block_updates(PROMPTS[1], lone="token+bos")
    batch = llm.block_updates(PROMPTS, lone="token+bos")
    torch.testing.assert_close(batch.context[:, 1], alone.context[:, 0], atol=1e-4, rtol=1e-4)
