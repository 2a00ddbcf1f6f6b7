"""The sum of section "guided" and "paper": streaming, calibrated, clipped, noisy only when asked."""

import gc
import math

import pytest
import torch
from torch import Tensor

from llmdiff.errors import AdapterMismatchError, ConfigError, PromptError
from llmdiff.language import ContextEncoding, DecoderLLM, Encoding, Lone
from llmdiff.types import BlockStates, TextEncoding

from .conftest import PROMPTS, tiny_llm

TEMPLATES = (None, "Picture: {prompt}", "{prompt}\nAgain: {prompt}")


def context_encoding(
    llm: DecoderLLM,
    encoding: Encoding = "guided",
    *,
    lone: Lone = "token+bos",
    template: str | None = None,
    clip: float = 3.0,
    calibrated: bool = True,
) -> ContextEncoding:
    """Returns an encoding with random gains."""
    torch.manual_seed(1)
    context = ContextEncoding(
        llm.num_blocks, llm.hidden_size, encoding=encoding, lone=lone, template=template, clip=clip
    )
    if calibrated:
        context.calibrate(llm, PROMPTS)
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.normal_()
    return context


def stored(llm: DecoderLLM, context: ContextEncoding) -> BlockStates:
    """Returns the block states that the encoding sums."""
    return llm.block_updates(PROMPTS, lone=context.lone, template=context.template)


def reference_sum(context: ContextEncoding, states: BlockStates) -> Tensor:
    """The formula of the docstring, in loops."""
    c = states.x0 / context.x0_scale
    for block in range(context.num_blocks):
        terms = [(context.gamma, states.context - states.lone, context.score_scale)]
        if context.kappa is not None:
            terms.append((context.kappa, states.lone, context.lone_scale))
        for gains, updates, scales in terms:
            for row, column in states.token_mask.nonzero().tolist():
                update, scale = updates[block, row, column], scales[block]
                if update.norm() > context.clip * scale:
                    update = update * context.clip * scale / update.norm()
                c[row, column] += gains[block].detach() / scale * update
    return c


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lone", ["token", "token+bos"])
@pytest.mark.parametrize("encoding", ["guided", "paper"])
def test_streaming_sum_equals_stored_sum_equals_formula(
    llama: DecoderLLM, encoding: Encoding, lone: Lone, template: str | None
) -> None:
    context = context_encoding(llama, encoding, lone=lone, template=template, clip=1.1)
    states = stored(llama, context)
    streamed = context.encode(llama, PROMPTS)
    torch.testing.assert_close(streamed.states, context.sum(states), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streamed.states, reference_sum(context, states), atol=1e-5, rtol=1e-5)
    assert torch.equal(streamed.token_mask, states.token_mask)
    assert streamed.states[~streamed.token_mask].abs().sum() == 0


def test_encodes_the_same_alone_batched_and_again(any_llm: DecoderLLM) -> None:
    context = context_encoding(any_llm)
    batch = context.encode(any_llm, PROMPTS)
    assert torch.equal(batch.states, context.encode(any_llm, PROMPTS).states)
    for row, prompt in enumerate(PROMPTS):
        single = context.encode(any_llm, prompt)
        found = batch.states[row][batch.token_mask[row]]
        torch.testing.assert_close(found, single.states[0], atol=1e-4, rtol=1e-4)


def test_first_token_of_paper_is_x0(any_llm: DecoderLLM) -> None:
    context = context_encoding(any_llm, "paper")
    x0 = stored(any_llm, context).x0
    c = context.encode(any_llm, PROMPTS).states
    assert torch.equal(c[:, 0], x0[:, 0] / context.x0_scale)
    assert not torch.allclose(c[1, 2], x0[1, 2] / context.x0_scale)


def test_guided_without_kappa_is_paper(llama: DecoderLLM) -> None:
    guided, paper = context_encoding(llama), context_encoding(llama, "paper")
    assert guided.kappa is not None
    with torch.no_grad():
        guided.kappa.zero_()
        paper.gamma.copy_(guided.gamma)
    assert torch.equal(guided.encode(llama, PROMPTS).states, paper.encode(llama, PROMPTS).states)


def test_equal_gains_are_weighted_context_updates(llama: DecoderLLM) -> None:
    context = context_encoding(llama, clip=math.inf)
    assert context.kappa is not None
    weights = context.gamma.detach() / context.score_scale
    with torch.no_grad():
        context.kappa.copy_(weights * context.lone_scale)
    states = stored(llama, context)
    expected = states.x0 / context.x0_scale + torch.einsum("l,lbtd->btd", weights, states.context)
    torch.testing.assert_close(context.encode(llama, PROMPTS).states, expected, atol=1e-4, rtol=1e-4)


def test_scales_are_median_norms_of_words(llama: DecoderLLM) -> None:
    context = context_encoding(llama)
    states = stored(llama, context)
    words = states.token_mask.clone()
    words[:, 0] = False
    assert torch.allclose(context.x0_scale, states.x0[words].norm(dim=-1).median())
    for block in range(context.num_blocks):
        norms = states.scores[block][words].norm(dim=-1)
        assert torch.allclose(context.score_scale[block], norms.median(), rtol=1e-4)
        assert torch.allclose(context.lone_scale[block], states.lone[block][words].norm(dim=-1).median())


def test_one_huge_token_moves_neither_scales_nor_itself_beyond_clip(llama: DecoderLLM) -> None:
    context = context_encoding(llama, "paper")
    states = stored(llama, context)
    states.context[2, 1, 3] *= 1e6
    with torch.no_grad():
        context.gamma.zero_()
        context.gamma[2] = 1.0
    c = context.sum(states).detach()
    moved = (c - states.x0 / context.x0_scale)[1, 3].norm()
    assert moved == pytest.approx(context.clip, rel=1e-4)


def test_gains_learn_and_the_llm_does_not(llama: DecoderLLM) -> None:
    context = context_encoding(llama)
    states = stored(llama, context)
    context.sum(states, generator=torch.Generator().manual_seed(0)).square().sum().backward()
    for name, parameter in context.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).all()), name
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())
    assert not context.encode(llama, PROMPTS).states.requires_grad
    assert not context.encode(llama, PROMPTS).states.is_inference()  # a trained head may follow


def test_gradient_is_right(llama: DecoderLLM) -> None:
    context = context_encoding(llama)
    states = stored(llama, context)
    weights = torch.randn_like(states.x0)
    (context.sum(states) * weights).sum().backward()
    assert context.gamma.grad is not None
    # c is linear in gamma: its slope is a difference.
    with torch.no_grad():
        before = context.sum(states)
        context.gamma[1] += 1
        slope = ((context.sum(states) - before) * weights).sum()
    assert float(context.gamma.grad[1]) == pytest.approx(float(slope), rel=1e-3)


def test_noise_only_with_a_generator_and_repeatable(llama: DecoderLLM) -> None:
    context = context_encoding(llama)

    def noisy(seed: int, prompts: list[str] = PROMPTS) -> TextEncoding:
        return context.encode(llama, prompts, generator=torch.Generator().manual_seed(seed))

    quiet = context.encode(llama, PROMPTS)
    assert torch.equal(noisy(3).states, noisy(3).states)
    assert not torch.equal(noisy(3).states, noisy(4).states)
    assert not torch.equal(noisy(3).states, quiet.states)
    assert noisy(3).states[~quiet.token_mask].abs().sum() == 0
    torch.testing.assert_close(
        context.sum(stored(llama, context), generator=torch.Generator().manual_seed(3)),
        noisy(3).states,
        atol=1e-5,
        rtol=1e-5,
    )
    # Padding draws nothing: the first prompt's noise is the same in any batch.
    first = noisy(3, PROMPTS[:1]).states[0]
    torch.testing.assert_close(noisy(3).states[0, : len(first)], first, atol=1e-4, rtol=1e-4)


def test_noise_has_the_variance_of_h(llama: DecoderLLM) -> None:
    context = context_encoding(llama)
    prompts = ["a red apple in the snow"] * 200
    quiet = context.encode(llama, prompts)
    noise = context.encode(llama, prompts, generator=torch.Generator().manual_seed(0)).states - quiet.states
    expected = float((2 * context.h.detach()).sum().sqrt())
    assert float(noise[quiet.token_mask].std()) == pytest.approx(expected, rel=0.02)
    assert bool((context.h >= 0).all())


def test_encoding_memory_does_not_grow_with_blocks() -> None:
    peaks = []
    for blocks in (3, 12):
        llm = tiny_llm("llama", num_hidden_layers=blocks)
        context = context_encoding(llm, calibrated=False)
        context.encode(llm, PROMPTS)
        weights = {id(parameter) for module in (llm.model, context) for parameter in module.parameters()}
        alive: list[int] = []

        def count(*_: object, weights: set[int] = weights, alive: list[int] = alive) -> None:
            tensors = [item for item in gc.get_objects() if type(item) is Tensor and id(item) not in weights]
            alive.append(sum(t.numel() for t in tensors if t.ndim == 3 and t.shape[0] == len(PROMPTS)))

        hooks = [block.register_forward_hook(count) for block in llm.blocks]
        context.encode(llm, PROMPTS)
        for hook in hooks:
            hook.remove()
        assert len(alive) == blocks
        peaks.append(max(alive))
    assert peaks[1] <= peaks[0]


def test_scales_are_saved_with_the_gains(llama: DecoderLLM) -> None:
    context = context_encoding(llama)
    again = ContextEncoding(llama.num_blocks, llama.hidden_size)
    again.load_state_dict(context.state_dict())
    assert torch.equal(again.encode(llama, PROMPTS).states, context.encode(llama, PROMPTS).states)
    assert "kappa" not in ContextEncoding(4, 32, encoding="paper").state_dict()


def test_refuses_what_does_not_fit(llama: DecoderLLM) -> None:
    with pytest.raises(
        AdapterMismatchError, match=r"'tiny-llama' has 4 blocks of width 32.*30 blocks of width 576"
    ):
        ContextEncoding(30, 576).encode(llama, PROMPTS)
    with pytest.raises(AdapterMismatchError, match="4 blocks of width 32"):
        ContextEncoding(5, 32).sum(llama.block_updates(PROMPTS))
    with pytest.raises(ConfigError, match="encoding is 'plain'"):
        ContextEncoding(4, 32, encoding="plain")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lone is 'bos'"):
        ContextEncoding(4, 32, lone="bos")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clip is 0"):
        ContextEncoding(4, 32, clip=0)
    with pytest.raises(PromptError, match="no words"):
        ContextEncoding(4, 32).calibrate(llama, ["", ""])


def test_embedded_llm_encodes_the_same_alone_and_batched(smollm2: DecoderLLM) -> None:
    context = ContextEncoding(30, 576, template="Describe the picture. Picture: {prompt}")
    context.calibrate(smollm2, [prompt for prompt in PROMPTS if prompt])
    batch = context.encode(smollm2, PROMPTS)
    norms = batch.states[batch.token_mask].norm(dim=-1)
    assert bool((norms < 1 + 2 * 3 * 30).all())
    assert bool((norms > 0).all())
    for row, prompt in enumerate(PROMPTS):
        single = context.encode(smollm2, prompt).states[0]
        torch.testing.assert_close(batch.states[row, : len(single)], single, atol=1e-4, rtol=1e-4)
