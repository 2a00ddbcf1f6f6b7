"""Grouped scores give the encoding's own sum, and its gradient."""

import pytest
import torch

from llmdiff.errors import AdapterMismatchError, ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.score_groups import encode_groups, group_of, sum_groups

PROMPTS = ["a red cat", "two green apples on the left of a car", ""]


def _context(llm, encoding="guided", **more):
    context = ContextEncoding(llm.num_blocks, llm.hidden_size, encoding=encoding, **more)
    context.calibrate(llm, PROMPTS[:2])
    with torch.no_grad():
        context.gamma.copy_(torch.linspace(0.5, 2, llm.num_blocks))
        if context.kappa is not None:
            context.kappa.copy_(torch.linspace(1.5, -0.5, llm.num_blocks))
    return context


@pytest.mark.parametrize("encoding", ["paper", "guided"])
@pytest.mark.parametrize("lone", ["token", "token+bos"])
def test_a_group_for_each_block_is_the_encoding_itself(make_llm, encoding, lone):
    llm = make_llm(num_blocks=5)
    context = _context(llm, encoding, lone=lone, template="a photo of {prompt}")
    grouped = encode_groups(context, llm, PROMPTS, groups=5)
    own = context.encode(llm, PROMPTS)
    assert torch.equal(grouped.token_mask, own.token_mask)
    assert torch.allclose(sum_groups(context, grouped), own.states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoding", ["paper", "guided"])
def test_blocks_of_a_group_share_the_mean_of_their_gains(make_llm, encoding):
    llm = make_llm(num_blocks=5)
    context = _context(llm, encoding)
    grouped = encode_groups(context, llm, PROMPTS, groups=2)
    got = sum_groups(context, grouped)
    with torch.no_grad():
        for gains in context.parameters():
            for members in ([0, 1, 2], [3, 4]):
                gains[members] = gains[members].mean()
    assert [group_of(block, 5, 2) for block in range(5)] == [0, 0, 0, 1, 1]
    assert torch.allclose(got, context.encode(llm, PROMPTS).states, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_the_gains_is_that_of_the_stored_block_updates(make_llm):
    llm = make_llm(num_blocks=4)
    context = _context(llm)
    weights = torch.randn(len(PROMPTS), 1, llm.hidden_size)
    (context.sum(llm.block_updates(PROMPTS, lone=context.lone)) * weights).sum().backward()
    expected = [context.gamma.grad.clone(), context.kappa.grad.clone()]
    context.zero_grad()
    (sum_groups(context, encode_groups(context, llm, PROMPTS, groups=4)) * weights).sum().backward()
    assert torch.allclose(context.gamma.grad, expected[0], atol=1e-3, rtol=1e-3)
    assert torch.allclose(context.kappa.grad, expected[1], atol=1e-3, rtol=1e-3)


def test_noise_reaches_real_tokens_only(make_llm):
    llm = make_llm()
    context = _context(llm)
    grouped = encode_groups(context, llm, PROMPTS, groups=1)
    still, noised = (
        sum_groups(context, grouped),
        sum_groups(context, grouped, generator=torch.Generator().manual_seed(1)),
    )
    changed = (still != noised).any(-1)
    assert torch.equal(changed, grouped.token_mask)


@pytest.mark.parametrize("groups", [0, 4])
def test_a_number_of_groups_that_cannot_be(make_llm, groups):
    llm = make_llm(num_blocks=3)
    with pytest.raises(ConfigError, match=f"score_groups is {groups}, expected 1 to 3"):
        encode_groups(_context(llm), llm, PROMPTS, groups=groups)


def test_another_llm_is_refused(make_llm):
    context = _context(make_llm(num_blocks=3))
    with pytest.raises(AdapterMismatchError, match="has 4 blocks"):
        encode_groups(context, make_llm(num_blocks=4), PROMPTS, groups=1)
