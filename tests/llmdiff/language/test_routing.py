"""Gains of groups of attention layers: the formula in loops, streaming, stored scores, gradients, digests."""

from itertools import product

import pytest
import torch

from llmdiff.language.cache import EncodingStore, encoding_key
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.score_groups import encode_groups, sum_groups

PROMPTS = ["a red cat", "two green apple on the left of a car", ""]
KINDS = list(product(("paper", "guided"), ("signed", "softmax")))


def _context(llm, encoding="guided", form="signed", routing=3):
    torch.manual_seed(1)
    context = ContextEncoding(
        llm.num_blocks, llm.hidden_size, encoding=encoding, routing=routing, routing_form=form
    )
    context.calibrate(llm, PROMPTS[:2])
    with torch.no_grad():
        for name, parameter in context.named_parameters():
            if name != "h_raw":
                parameter.normal_()
    return context


def _reference(context, states):
    """c_d of the docstrings, a token and a block at a time."""
    groups, blocks = context.routed.groups, context.num_blocks
    c = torch.zeros(*states.token_mask.shape, groups, context.hidden_size)
    for row, column in states.token_mask.nonzero().tolist():
        for group in range(groups):
            one = states.x0[row, column] / context.x0_scale
            for block in range(blocks):
                score = states.context[block, row, column] - states.lone[block, row, column]
                terms = [(context.gamma, context.routed.gamma, score, context.score_scale)]
                if context.encoding == "guided":
                    lone = states.lone[block, row, column]
                    terms.append((context.kappa, context.routed.kappa, lone, context.lone_scale))
                for shared, own, update, scales in terms:
                    if context.routed.form == "signed":
                        gain = shared[block] + own[block, group]
                    else:
                        share = own[block, group].exp() / own[:, group].exp().sum()
                        gain = shared[block] * blocks * share
                    longest = context.clip * scales[block]
                    if update.norm() > longest:
                        update = update * longest / update.norm()
                    one = one + gain * update / scales[block]
            c[row, column, group] = one
    return c


@pytest.mark.parametrize(("encoding", "form"), KINDS)
@torch.no_grad()
def test_every_group_is_summed_in_one_pass(make_llm, encoding, form):
    llm = make_llm(num_blocks=4)
    context = _context(llm, encoding, form)
    states = llm.block_updates(PROMPTS, lone=context.lone)
    expected = _reference(context, states)
    streamed = context.encode(llm, PROMPTS)
    assert streamed.states.shape == (*streamed.token_mask.shape, 3, llm.hidden_size)
    assert torch.equal(
        streamed.states[~streamed.token_mask], torch.zeros_like(streamed.states[~streamed.token_mask])
    )
    assert torch.allclose(streamed.states, expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(context.sum(states), expected, atol=1e-4, rtol=1e-4)
    grouped = sum_groups(context, encode_groups(context, llm, PROMPTS, groups=4))
    assert torch.allclose(grouped, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("encoding", "form"), KINDS)
@torch.no_grad()
def test_new_groups_read_what_all_layers_read(make_llm, encoding, form):
    llm = make_llm(num_blocks=4)
    routed = ContextEncoding(4, llm.hidden_size, encoding=encoding, routing=3, routing_form=form)
    plain = ContextEncoding(4, llm.hidden_size, encoding=encoding)
    for context in (routed, plain):
        context.calibrate(llm, PROMPTS[:2])
    expected = plain.encode(llm, PROMPTS).states
    for group in range(3):
        assert torch.allclose(routed.encode(llm, PROMPTS).states[:, :, group], expected, atol=1e-5)


def test_the_gradient_of_stored_scores_is_that_of_the_stored_block_updates(make_llm):
    llm = make_llm(num_blocks=4)
    context = _context(llm)
    weights = torch.randn(len(PROMPTS), 1, 3, llm.hidden_size)
    found = []
    for c in (
        context.sum(llm.block_updates(PROMPTS, lone=context.lone)),
        sum_groups(context, encode_groups(context, llm, PROMPTS, groups=4)),
        context.encode(llm, PROMPTS, gradients=True).states,
    ):
        context.zero_grad()
        (c * weights).sum().backward()
        found.append([gains.grad.clone() for gains in context.routed.parameters()])
    for others in found[1:]:
        for grad, expected in zip(others, found[0], strict=True):
            assert grad.abs().min() > 0
            assert torch.allclose(grad, expected, atol=1e-3, rtol=1e-3)


def test_the_weight_of_a_word_is_that_of_its_scores_in_every_group(make_llm):
    llm = make_llm(num_blocks=4)
    context = _context(llm)
    weighted = context.encode(llm, ["a red (cat:0)"], weighted=True).states
    states = llm.block_updates(["a red cat"], lone=context.lone)
    alone = context.sum(states, token_weights=torch.tensor([[1.0, 1, 1, 0]]))
    assert torch.allclose(weighted, alone, atol=1e-4)
    assert not torch.allclose(weighted, context.encode(llm, ["a red cat"]).states, atol=1e-2)


def test_a_blocks_noise_is_the_same_in_all_groups(make_llm):
    llm = make_llm(num_blocks=4)
    context = _context(llm)
    still = context.encode(llm, PROMPTS).states
    noise = context.encode(llm, PROMPTS, generator=torch.Generator().manual_seed(0)).states - still
    assert noise.abs().max() > 1e-3
    assert torch.allclose(noise[:, :, 0], noise[:, :, 2], atol=1e-4)


def test_stored_encodings_keep_their_groups_and_their_gains_have_a_store_of_their_own(make_llm, tmp_path):
    llm = make_llm(num_blocks=4)
    context = _context(llm)
    store = EncodingStore(tmp_path, lambda texts: context.encode(llm, texts))
    assert torch.allclose(
        store.batch(PROMPTS).states, context.encode(llm, PROMPTS).states, atol=2e-2, rtol=2e-3
    )
    keys = {encoding_key(llm, context), encoding_key(llm, _context(llm, form="softmax"))}
    scores = {encoding_key(llm, context, groups=2)}
    with torch.no_grad():
        context.routed.gamma.add_(1)
    keys.add(encoding_key(llm, context))
    scores.add(encoding_key(llm, context, groups=2))
    assert len(keys) == 3
    # Scores are stored before gains weigh them: an unrouted training shares them.
    with torch.no_grad():
        plain = ContextEncoding(4, llm.hidden_size)
        plain.calibrate(llm, PROMPTS[:2])
    scores.add(encoding_key(llm, plain, groups=2))
    assert len(scores) == 1
