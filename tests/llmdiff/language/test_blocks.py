"""Block updates against an independent computation with explicit attention masks."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from llmdiff.language import DecoderLLM, Lone, PromptTokens, run_blocks
from llmdiff.language.lone_calls import JoinedCall
from llmdiff.language.rows import SharedInputs
from llmdiff.types import BlockStates

from .conftest import PROMPTS, tiny_config, tiny_llm, tiny_model, tiny_tokenizer
from .truth import alone, assert_relative, causal, explicit_updates, lone_updates, own_updates

LONES: tuple[Lone, ...] = ("token", "token+bos")
TEMPLATES = (
    None,
    "Describe the picture: {prompt}",
    "{prompt}\nAgain: {prompt}",
    "Picture: {prompt} in the snow",
)


def full_ids(tokens: PromptTokens, row: int) -> list[int]:
    """Everything the LLM reads for one prompt, as one text."""
    kept = tokens.input_ids[row][tokens.token_mask[row]].tolist()
    return [*tokens.prefix_ids, *tokens.context_ids[row], *kept[1:]]


def kept_places(tokens: PromptTokens, row: int) -> list[int]:
    """Where in `full_ids` the kept tokens stand."""
    end = len(full_ids(tokens, row))
    return [0, *range(len(tokens.prefix_ids) + len(tokens.context_ids[row]), end)]


class PromptStates(NamedTuple):
    """The states of one prompt. Shapes: x0 (T, D); context, lone (L, T, D); input_ids (T,)."""

    x0: Tensor
    context: Tensor
    lone: Tensor
    input_ids: Tensor


def real(states: BlockStates, row: int) -> PromptStates:
    """Return the states of one prompt's real tokens."""
    mask = states.token_mask[row]
    return PromptStates(
        x0=states.x0[row][mask],
        context=states.context[:, row][:, mask],
        lone=states.lone[:, row][:, mask],
        input_ids=states.input_ids[row][mask],
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lone", LONES)
def test_updates_agree_with_explicit_masks(any_llm: DecoderLLM, lone: Lone, template: str | None) -> None:
    tokens = any_llm.tokenize(PROMPTS, template=template)
    states = any_llm.block_updates(PROMPTS, lone=lone, template=template)
    last = any_llm.last_hidden_states(PROMPTS, template=template)
    for row in range(len(PROMPTS)):
        ids, places = full_ids(tokens, row), kept_places(tokens, row)
        if any_llm.reading.lone_calls == "sequences":  # no mask says what a state holds
            inputs, context, expected_last = own_updates(any_llm, ids)
        else:
            inputs, context, expected_last = explicit_updates(any_llm, ids, causal(any_llm))
        found = real(states, row)
        assert_relative(found.x0[None], inputs[:1, places], 1e-5)
        assert_relative(found.context, context[:, places], 1e-5)
        assert_relative(found.lone, lone_updates(any_llm, ids, lone)[:, places], 1e-5)
        assert_relative(last.states[row][last.token_mask[row]][None], expected_last[None, places], 1e-5)


@pytest.mark.parametrize("lone", LONES)
def test_first_token_has_score_zero(any_llm: DecoderLLM, lone: Lone) -> None:
    scores = any_llm.block_updates(PROMPTS, lone=lone).scores
    assert torch.equal(scores[:, :, 0], torch.zeros_like(scores[:, :, 0]))
    assert scores[:, 1, 3].abs().sum() > 0


def test_first_word_has_score_zero_where_alone_means_with_bos(llama: DecoderLLM) -> None:
    scores = llama.block_updates("a red apple", lone="token+bos").scores
    torch.testing.assert_close(scores[:, 0, 1], torch.zeros_like(scores[:, 0, 1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("template", TEMPLATES)
def test_same_alone_batched_left_or_right_padded(any_llm: DecoderLLM, template: str | None) -> None:
    batch = any_llm.block_updates(PROMPTS, lone="token+bos", template=template)
    tokens = any_llm.tokenize(PROMPTS, template=template)
    left_context: list[Tensor] = []
    left_lone: list[Tensor] = []

    def keep(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
        assert v is not None
        left_context.append(u)
        left_lone.append(v)

    left_x0 = run_blocks(any_llm, padded_left(tokens), lone="token+bos", visit=keep)
    for row, prompt in enumerate(PROMPTS):
        single = any_llm.block_updates(prompt, lone="token+bos", template=template)
        count = single.input_ids.shape[1]
        found = real(batch, row)
        torch.testing.assert_close(found.context, single.context[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.lone, single.lone[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left_x0[row, -count:], single.x0[0], atol=1e-4, rtol=1e-4)
        assert left_x0[row, :-count].abs().sum() == 0
        for left, expected in ((left_context, single.context), (left_lone, single.lone)):
            torch.testing.assert_close(
                torch.stack(left)[:, row, -count:], expected[:, 0], atol=1e-4, rtol=1e-4
            )


def padded_left(tokens: PromptTokens) -> PromptTokens:
    """The same tokens with the padding in front."""
    ids, mask = torch.zeros_like(tokens.input_ids), torch.zeros_like(tokens.token_mask)
    for row, keep in enumerate(tokens.token_mask):
        count = int(keep.sum())
        ids[row, -count:] = tokens.input_ids[row][keep]
        mask[row, -count:] = True
    return replace(tokens, input_ids=ids, token_mask=mask)


def test_padding_rows_are_zero_and_updates_repeat_bit_for_bit(any_llm: DecoderLLM) -> None:
    first, second = (any_llm.block_updates(PROMPTS, lone="token+bos") for _ in range(2))
    for name in ("x0", "context", "lone"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        padding = ~first.token_mask.expand(getattr(first, name).shape[:-1])
        assert getattr(first, name)[padding].abs().sum() == 0


def test_visits_blocks_in_order_and_leaves_no_hooks(llama: DecoderLLM) -> None:
    seen: list[int] = []
    run_blocks(llama, llama.tokenize("a red apple"), lone=None, visit=lambda index, *_: seen.append(index))
    assert seen == [0, 1, 2, 3]
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in llama.blocks)

    def fail(*_: Any) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        run_blocks(llama, llama.tokenize("a red apple"), lone="token", visit=fail)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in llama.blocks)


def test_only_empty_prompts_still_have_bos(any_llm: DecoderLLM) -> None:
    one = any_llm.block_updates("", lone="token")
    more = real(any_llm.block_updates(["", "a red apple"], lone="token"), 0)
    assert one.input_ids.tolist() == [[any_llm.tokenize("").prefix_ids[0]]]
    assert torch.equal(one.context[:, 0], more.context)
    assert any_llm.last_hidden_states("").states.shape[:2] == (1, 1)


def test_prefix_is_run_once() -> None:
    llm = tiny_llm("llama")
    lengths: list[int] = []
    hook = llm.blocks[0].register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    template = "Describe the picture: which object is where? Picture: {prompt}"
    words = llm.tokenize("a cat", template=template).input_ids.shape[1] - 1
    for _ in range(3):
        llm.last_hidden_states("a cat", template=template)
    hook.remove()
    prefix = len(llm.tokenize("", template=template).prefix_ids)
    assert lengths == [prefix, words, words, words]


def test_a_pass_keeps_nothing_of_earlier_blocks() -> None:
    llm = tiny_llm("llama", num_hidden_layers=12)
    tokens = llm.tokenize(PROMPTS)
    run_blocks(llm, tokens, lone="token+bos", visit=lambda *_: None)  # the prefix is remembered from here on
    alive: list[int] = []
    earlier: list[weakref.ref[Tensor]] = []
    weights = {id(parameter) for parameter in llm.model.parameters()}

    def count(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
        assert all(reference() is None for reference in earlier)
        earlier.append(weakref.ref(u))
        if index not in (2, 11):  # walking over all objects is slow
            return
        gc.collect()
        # type, not isinstance: the latter touches every lazy object of the process
        tensors = [item for item in gc.get_objects() if type(item) is Tensor and id(item) not in weights]
        alive.append(sum(item.numel() for item in tensors))

    run_blocks(llm, tokens, lone="token+bos", visit=count)
    assert len(earlier) == 12
    assert alive[1] <= alive[0]


def test_threads_do_not_see_each_others_blocks(llama: DecoderLLM) -> None:
    expected = [llama.block_updates(prompt, lone="token+bos").context for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda prompt: llama.block_updates(prompt, lone="token+bos").context, PROMPTS * 4)
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 4, strict=True))


def test_half_precision_llm_gives_float32_updates() -> None:
    llm = tiny_llm("llama")
    expected = llm.block_updates(PROMPTS, lone="token+bos")
    half = DecoderLLM(llm.model.to(torch.bfloat16), llm.tokenizer, id="half")
    found = half.block_updates(PROMPTS, lone="token+bos")
    assert half.dtype == torch.bfloat16
    assert found.context.dtype == torch.float32
    assert float((found.context - expected.context).norm() / expected.context.norm()) < 0.05


def test_embedded_llm_agrees_with_explicit_masks(smollm2: DecoderLLM) -> None:
    prompt, template = "an apple to the left of a bicycle", "Describe the picture. Picture: {prompt}"
    tokens = smollm2.tokenize(prompt, template=template)
    ids, places = full_ids(tokens, 0), kept_places(tokens, 0)
    assert ids[0] == smollm2.tokenizer.bos_token_id
    assert smollm2.tokenizer.decode(ids[1:]) == template.format(prompt=prompt)
    _, context, _ = explicit_updates(smollm2, ids, causal(smollm2))
    for lone in LONES:
        states = smollm2.block_updates(prompt, lone=lone, template=template)
        _, expected, _ = explicit_updates(smollm2, ids, alone(lone))
        assert_relative(states.context[:, 0], context[:, places], 1e-5)
        assert_relative(states.lone[:, 0], expected[:, places], 1e-5)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lone", LONES)
def test_joined_and_separate_calls_give_the_same(
    any_llm: DecoderLLM, lone: Lone, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    of = JoinedCall.of
    monkeypatch.setattr(JoinedCall, "of", lambda *args, **more: made.append(of(*args, **more)) or made[-1])
    joined = any_llm.block_updates(PROMPTS, lone=lone, template=template)
    if any_llm.reading.whole_texts:
        assert not made
        return
    assert made[-1] is not None
    monkeypatch.setattr("llmdiff.language.lone_calls._MAX_TOKENS", 0)
    separate = any_llm.block_updates(PROMPTS, lone=lone, template=template)
    assert made[-1] is None
    for name in ("x0", "context", "lone"):
        torch.testing.assert_close(
            getattr(joined, name), getattr(separate, name), atol=1e-5, rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("joined", [True, False])
def test_both_calls_agree_with_explicit_masks_for_every_attention(
    attention: str, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not joined:
        monkeypatch.setattr("llmdiff.language.lone_calls._MAX_TOKENS", 0)
    # A window of 4 keys in three of four blocks.
    llm = DecoderLLM(tiny_model(tiny_config("gemma3"), attention=attention), tiny_tokenizer(), id="tiny")
    tokens = llm.tokenize(PROMPTS[1])
    ids, places = full_ids(tokens, 0), kept_places(tokens, 0)
    _, context, _ = explicit_updates(llm, ids, causal(llm))
    for lone in LONES:
        states = llm.block_updates(PROMPTS[1], lone=lone)
        _, expected, _ = explicit_updates(llm, ids, alone(lone))
        assert_relative(states.context[:, 0], context[:, places], 1e-5)
        assert_relative(states.lone[:, 0], expected[:, places], 1e-5)


@pytest.mark.parametrize(
    ("template", "expected"),
    [(None, [1, 2]), ("Picture: {prompt} in the snow", [2, 2, 3])],
)
def test_a_prompt_without_words_is_not_run(template: str | None, expected: list[int]) -> None:
    llm = tiny_llm("llama")
    llm.block_updates("a cat", template=template)  # the prefix is remembered from here on
    read: list[int] = []
    hook = llm.blocks[0].register_forward_pre_hook(lambda module, args: read.append(len(args[0])))
    for prompts in (["a cat", ""], ["", ""], ["", "a red apple", "a cat"]):
        llm.block_updates(prompts, template=template)
    hook.remove()
    assert read == expected


def test_what_blocks_share_is_made_once_and_little_of_it_is_kept() -> None:
    shared, made = SharedInputs(), []

    def of(given: Tensor) -> Tensor:
        return shared.of(given, lambda: made.append(given) or given + 1)

    table = torch.zeros(2)
    assert of(table) is of(table)
    assert len(made) == 1
    own: list[weakref.ref[Tensor]] = []  # as where every block has an input of its own
    for value in range(40):
        given = torch.full((2,), float(value))
        assert of(given).tolist() == [value + 1.0] * 2
        own.append(weakref.ref(given))
        made.clear()
    assert sum(reference() is not None for reference in own) <= 8
