"""Alone = the token's own way through the blocks: against texts of one word, remembered, dropped and moved."""

import pytest
import torch
from torch import Tensor

from llmdiff.errors import CorruptWeightsError
from llmdiff.language import ContextEncoding, DecoderLLM, run_blocks
from llmdiff.language.vocabulary import LoneVocabulary

from .conftest import PROMPTS, tiny_llm
from .test_blocks import assert_relative, causal, explicit_updates, padded_left

TEMPLATE = "Describe the picture: {prompt}"


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_lone_updates_are_those_of_a_text_of_one_token(any_llm: DecoderLLM, template: str | None) -> None:
    states = any_llm.block_updates(PROMPTS, lone="vocabulary", template=template)
    bos = any_llm.tokenize("").prefix_ids[0]
    expected: dict[int, Tensor] = {}
    for row, ids in enumerate(states.input_ids.tolist()):
        for place in range(1, int(states.token_mask[row].sum())):
            token = ids[place]
            if token not in expected:
                expected[token] = explicit_updates(any_llm, [bos, token], causal(any_llm))[1][:, 1]
            assert_relative(states.lone[:, row, place], expected[token], 1e-5)
    assert torch.equal(states.lone[:, :, 0], states.context[:, :, 0])
    assert states.lone[:, ~states.token_mask].abs().sum() == 0


def test_context_updates_are_those_of_every_other_reading(
    any_llm: DecoderLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A joined call runs lone tokens beside the text and may round elsewhere: it has its own test in test_blocks.
    monkeypatch.setattr("llmdiff.language.lone_calls._MAX_TOKENS", 0)
    found = any_llm.block_updates(PROMPTS, lone="vocabulary")
    expected = any_llm.block_updates(PROMPTS, lone="token")
    assert torch.equal(found.context, expected.context)
    assert torch.equal(found.x0, expected.x0)


def test_a_prompt_of_one_token_has_no_score(llama: DecoderLLM) -> None:
    states = llama.block_updates("a", lone="vocabulary")
    assert states.input_ids.shape == (1, 2)
    torch.testing.assert_close(states.scores, torch.zeros_like(states.scores), atol=1e-5, rtol=0)
    assert llama.block_updates("a red", lone="vocabulary").scores[:, 0, 2].norm() > 0.1


def test_the_same_alone_batched_and_padded_on_either_side(any_llm: DecoderLLM) -> None:
    context = ContextEncoding(any_llm.num_blocks, any_llm.hidden_size, lone="vocabulary")
    batch = context.encode(any_llm, PROMPTS)
    left: list[Tensor] = []
    tokens = padded_left(any_llm.tokenize(PROMPTS))
    run_blocks(any_llm, tokens, lone="vocabulary", visit=lambda index, x, u, v: left.append(v))
    right = any_llm.block_updates(PROMPTS, lone="vocabulary")
    for row, prompt in enumerate(PROMPTS):
        single = context.encode(any_llm, prompt)
        torch.testing.assert_close(
            batch.states[row][batch.token_mask[row]], single.states[0], atol=1e-4, rtol=1e-4
        )
        found = torch.stack(left)[:, row][:, tokens.token_mask[row]]
        assert torch.equal(found, right.lone[:, row][:, right.token_mask[row]])


def test_a_token_is_computed_once_wherever_it_stands() -> None:
    llm = tiny_llm("llama")
    read: list[tuple[int, ...]] = []
    hook = llm.blocks[0].register_forward_hook(lambda module, args, out: read.append(tuple(out.shape[:2])))
    ids = llm.tokenize("a red apple").input_ids[0, 1:].tolist()
    first = llm.block_updates("a red apple", lone="vocabulary")
    assert read == [(1, 1), (len(set(ids)), 1), (1, len(ids))]  # BOS, each token by itself, the prompt
    read.clear()
    again = llm.block_updates(["a red apple"] * 2, lone="vocabulary", template="a red apple {prompt}")
    prefix = len(llm.tokenize("", template="a red apple {prompt}").prefix_ids)
    blank = set(llm.tokenize("a red apple", template="a red apple {prompt}").input_ids[0, 1:].tolist())
    unknown = len(blank - set(ids))
    expected = [(1, prefix), *([(unknown, 1)] if unknown else []), (2, again.input_ids.shape[1] - 1)]
    assert read == expected
    read.clear()
    assert torch.equal(llm.block_updates("a red apple", lone="vocabulary").lone, first.lone)
    assert read == [(1, len(ids))]
    hook.remove()
    assert len(llm.vocabulary) == len(set(ids) | blank)


@pytest.mark.parametrize("room", [1, 9, 20])
def test_too_little_room_drops_tokens_and_changes_nothing(room: int) -> None:
    llm, roomy = tiny_llm("llama"), tiny_llm("llama")
    llm.vocabulary = LoneVocabulary(
        llm.num_blocks, llm.hidden_size, max_bytes=room * 4 * llm.num_blocks * llm.hidden_size
    )
    most = 0
    prompts = [prompt for prompt in PROMPTS if prompt]
    for prompt in [*prompts, *reversed(prompts)]:
        found = llm.block_updates(prompt, lone="vocabulary").lone
        torch.testing.assert_close(
            found, roomy.block_updates(prompt, lone="vocabulary").lone, atol=1e-5, rtol=1e-5
        )
        here = len(set(llm.tokenize(prompt).input_ids[0, 1:].tolist()))
        assert len(llm.vocabulary) <= max(room, here)
        most = max(most, len(llm.vocabulary))
    assert most < len(roomy.vocabulary)


def test_rows_made_in_inference_mode_serve_and_grow_outside_of_it() -> None:
    llm = tiny_llm("llama")
    with torch.inference_mode():
        first = llm.block_updates(PROMPTS[0], lone="vocabulary").lone.clone()
    more = llm.block_updates(PROMPTS, lone="vocabulary")
    torch.testing.assert_close(more.lone[:, :1, : first.shape[2]], first, atol=1e-4, rtol=1e-4)


def test_what_is_known_outlives_a_move_and_no_change_of_weights() -> None:
    llm = tiny_llm("llama")
    before = llm.block_updates(PROMPTS, lone="vocabulary").lone
    known = len(llm.vocabulary)
    llm.placement._before_move()
    assert len(llm.vocabulary) == known
    assert torch.equal(llm.block_updates(PROMPTS, lone="vocabulary").lone, before)
    with torch.no_grad():
        llm.model.model.layers[1].mlp.up_proj.weight.mul_(2)
    llm.forget_prefixes()
    assert len(llm.vocabulary) == 0
    assert not torch.allclose(llm.block_updates(PROMPTS, lone="vocabulary").lone[1], before[1])


def test_a_damaged_weight_is_named() -> None:
    llm = tiny_llm("llama")
    with torch.no_grad():
        llm.model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(CorruptWeightsError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        llm.block_updates(PROMPTS, lone="vocabulary")
