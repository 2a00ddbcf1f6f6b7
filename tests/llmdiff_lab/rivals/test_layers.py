"""Sources that read an LLM's layers, against transformers' own hidden states of the same tokens."""

import pytest
import torch
from tiny.readers import PROMPTS, layer_outputs, normed

from llmdiff_lab.rivals.context_only import ContextOnly
from llmdiff_lab.rivals.first_states import FirstStates
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.layer_weights import LayerWeights
from llmdiff_lab.rivals.norm_average import NormAverageStates
from llmdiff_lab.rivals.penultimate import PenultimateStates


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (LastHiddenStates, lambda x, last: last),
        (PenultimateStates, lambda x, last: x[-2]),
        (FirstStates, lambda x, last: x[0]),
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
