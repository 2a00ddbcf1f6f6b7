"""Sources that read an LLM's layers, against transformers' own hidden states of the same tokens."""

from functools import partial

import pytest
import torch
from tiny.readers import PROMPTS, layer_outputs, normed

from llmdiff_lab.rivals.block_inputs import EnteringStates
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.layer_attention import LayerAttention
from llmdiff_lab.rivals.layer_weights import LayerWeights
from llmdiff_lab.rivals.norm_average import NormAverageStates
from llmdiff_lab.rivals.registers import Registers
from llmdiff_lab.rivals.routed_mean import RoutedMean
from llmdiff_lab.rivals.taps import Taps
from llmdiff_lab.rivals.update_sum import Consecutive, ContextOnly


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (LastHiddenStates, lambda x, last: last),
        (partial(EnteringStates, block=-1), lambda x, last: x[-2]),
        (partial(EnteringStates, block=0), lambda x, last: x[0]),
        (NormAverageStates, lambda x, last: sum(normed(one) for one in x[1:]) / (len(x) - 1)),
    ],
)
@torch.no_grad()
def test_frozen_sources_read_the_layer_they_name(tiny_llm, make, expected):
    source = make(tiny_llm)
    encoding = source.encode(PROMPTS)
    for b, prompt in enumerate(PROMPTS):
        x, last = layer_outputs(tiny_llm, prompt)
        length = len(last)
        assert encoding.token_mask[b].tolist() == [True] * length + [False] * (
            encoding.token_mask.shape[1] - length
        )
        torch.testing.assert_close(encoding.states[b, :length], expected(x, last), atol=2e-5, rtol=1e-4)
        assert not encoding.states[b, length:].any()
    assert (source.hidden_size, source.num_blocks, source.id) == (16, 0, "tiny-llama")


@torch.no_grad()
def test_a_template_is_context_for_every_source(tiny_llm):
    plain, framed = NormAverageStates(tiny_llm), NormAverageStates(tiny_llm, template="the photo of {prompt}")
    assert plain.encode(["a cat"]).states.shape == framed.encode(["a cat"]).states.shape
    assert not torch.allclose(plain.encode(["a cat"]).states, framed.encode(["a cat"]).states)


@torch.no_grad()
def test_layer_weights_are_a_softmax_mixture_and_begin_as_the_average(tiny_llm):
    source = LayerWeights(tiny_llm)
    start = source.encode(PROMPTS)
    torch.testing.assert_close(start.states, NormAverageStates(tiny_llm).encode(PROMPTS).states)
    source.gamma.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x, _ = layer_outputs(tiny_llm, PROMPTS[0])
    weights = torch.tensor([0.5, -1.0, 2.0]).exp()
    expected = sum(w * normed(one) for w, one in zip(weights / weights.sum(), x[1:], strict=True))
    torch.testing.assert_close(
        source.encode(PROMPTS).states[0, : len(expected)], expected, atol=2e-5, rtol=1e-4
    )
    assert sum(p.numel() for p in source.parameters()) == tiny_llm.num_blocks


@torch.no_grad()
def test_context_only_sums_updates_and_subtracts_nothing(tiny_llm):
    source = ContextOnly(tiny_llm)
    source.calibrate(PROMPTS)
    source.context.gamma.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x, _ = layer_outputs(tiny_llm, PROMPTS[0])
    words = [torch.stack(layer_outputs(tiny_llm, prompt)[0])[:, 1:] for prompt in PROMPTS]
    x0_scale = torch.cat([w[0].norm(dim=-1) for w in words]).median()
    scales = [torch.cat([(w[i + 1] - w[i]).norm(dim=-1) for w in words]).median() for i in range(3)]
    expected = x[0] / x0_scale
    for gain, scale, before, after in zip((0.5, -1.0, 2.0), scales, x[:-1], x[1:], strict=True):
        update = (after - before) / scale
        shorten = (3.0 / update.norm(dim=-1, keepdim=True)).clamp(max=1)
        expected = expected + gain * update * shorten
    torch.testing.assert_close(
        source.encode(PROMPTS).states[0, : len(expected)], expected, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_consecutive_sums_what_a_block_adds_beyond_the_one_before(tiny_llm):
    source, plain = Consecutive(tiny_llm), ContextOnly(tiny_llm)
    for one in (source, plain):
        one.context.clip = float("inf")
    gains = torch.tensor([0.5, -1.0, 2.0])
    source.context.gamma.copy_(gains)
    # sum_l g_l (u_l - u_{l-1}) = sum_l (g_l - g_{l+1}) u_l
    plain.context.gamma.copy_(gains - torch.tensor([-1.0, 2.0, 0.0]))
    expected = plain.encode(PROMPTS).states
    torch.testing.assert_close(source.encode(PROMPTS).states, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_routed_mean_is_a_softmax_mixture_for_every_group(tiny_llm):
    source = RoutedMean(tiny_llm, groups=2)
    start = NormAverageStates(tiny_llm).encode(PROMPTS).states
    for group in range(2):
        torch.testing.assert_close(source.encode(PROMPTS).states[:, :, group], start)
    source.gamma.copy_(torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, -3.0]]))
    x, _ = layer_outputs(tiny_llm, PROMPTS[0])
    got = source.encode(PROMPTS).states[0]
    for group in range(2):
        weights = source.gamma[:, group].exp()
        expected = sum(w * normed(one) for w, one in zip(weights / weights.sum(), x[1:], strict=True))
        torch.testing.assert_close(got[: len(expected), group], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_layer_attention_lets_the_layers_of_a_token_attend_to_each_other(tiny_llm):
    torch.manual_seed(0)
    source = LayerAttention(tiny_llm, heads=2)
    start = NormAverageStates(tiny_llm).encode(PROMPTS).states
    torch.testing.assert_close(source.encode(PROMPTS).states, start, atol=1e-5, rtol=1e-4)
    for parameter in source.parameters():
        parameter.normal_()
    x, _ = layer_outputs(tiny_llm, PROMPTS[0])
    got = source.encode(PROMPTS).states[0]
    layers = torch.stack([normed(one) for one in x[1:]], dim=1)  # (T, L, D)
    for token, rows in enumerate(layers):
        looked = []
        for head in (slice(0, 8), slice(8, 16)):
            query, key, value = (
                (rows @ part.weight.T)[:, head] for part in (source.to_q, source.to_k, source.to_v)
            )
            looked.append((query @ key.T / 8**0.5).softmax(-1) @ value)
        mixed = rows + torch.cat(looked, dim=-1) @ source.to_out.weight.T + source.to_out.bias
        expected = (source.mixture[:, None] * mixed).sum(0)
        torch.testing.assert_close(got[token], expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_taps_are_three_layers_side_by_side(make_llm):
    llm = make_llm(num_blocks=8)
    source = Taps(llm)
    x, _ = layer_outputs(llm, PROMPTS[0])
    expected = torch.cat([normed(x[2]), normed(x[4]), normed(x[6])], dim=-1)
    got = source.encode(PROMPTS)
    assert source.hidden_size == 3 * llm.hidden_size
    torch.testing.assert_close(got.states[0, : len(expected)], expected, atol=2e-5, rtol=1e-4)
    assert not got.states[~got.token_mask].any()


@torch.no_grad()
def test_registers_stand_in_the_place_of_padding(tiny_llm):
    source = Registers(tiny_llm, registers=5)
    got = source.encode(PROMPTS)
    tokens = source.read(PROMPTS).token_mask.shape[1]
    rows = 5 * (-(-tokens // 5))
    assert got.states.shape == (len(PROMPTS), rows, tiny_llm.hidden_size)
    assert got.token_mask.all()
    for b, prompt in enumerate(PROMPTS):
        x, _ = layer_outputs(tiny_llm, prompt)
        text = torch.cat([normed(one) for one in x[1:]], dim=-1) @ source.project.weight.T
        filling = torch.stack([source.registers[row % 5] for row in range(len(text), rows)])
        torch.testing.assert_close(got.states[b], torch.cat([text, filling]), atol=2e-5, rtol=1e-4)
