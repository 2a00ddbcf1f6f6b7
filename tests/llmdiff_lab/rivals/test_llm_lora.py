"""Ours with LoRA inside the LLM: begins as ours without, learns by true gradients, leaves the LLM as it was."""

from dataclasses import replace

import pytest
import torch
from tiny.readers import PROMPTS, shaken

from llmdiff.errors import ConfigError
from llmdiff_lab.rivals.lavi_bridge import llm_lora
from llmdiff_lab.rivals.registry import create
from llmdiff_lab.rivals.two_branch import AdapterConditioning

PROMPT = "a red cat"


def drawn(conditioning, pipe, draw):
    with conditioning.attached(pipe):
        return draw(pipe, PROMPT)


def main_stage(conditioning):
    *_, stage = conditioning.stages()
    return stage


@pytest.mark.parametrize("template", [None, "Picture: {prompt}", "{prompt}\nAgain: {prompt}"])
def test_it_begins_as_ours_and_the_llm_is_as_it_was_after_drawing(parts, draw, template):
    parts = replace(parts, template=template)
    plain, extended = create("refined", parts), create("refined-llm-lora", parts)
    llm, base = parts.llm, draw(parts.pipe, PROMPT)
    modules = {name: id(module) for name, module in llm.model.named_modules()}
    before = drawn(plain, parts.pipe, draw)
    assert torch.equal(drawn(extended, parts.pipe, draw), before)
    shaken(extended.llm_lora.up)
    assert not torch.equal(drawn(extended, parts.pipe, draw), before)
    assert torch.equal(drawn(plain, parts.pipe, draw), before)
    assert torch.equal(draw(parts.pipe, PROMPT), base)
    assert {name: id(module) for name, module in llm.model.named_modules()} == modules


def test_what_stands_before_all_prompts_is_read_by_the_llm_as_it_is(parts, draw):
    parts = replace(parts, template="Picture: {prompt}")
    extended = create("refined-llm-lora", parts)
    shaken(extended.llm_lora.up)
    llm = parts.llm
    prefix_ids = llm.tokenize("", template=parts.template).prefix_ids
    llm.forget_prefixes()
    as_it_is = llm.prefix_states(prefix_ids)
    remembered = drawn(extended, parts.pipe, draw)
    llm.forget_prefixes()  # anew, first needed while the LLM has its LoRA
    assert torch.equal(drawn(extended, parts.pipe, draw), remembered)
    assert torch.equal(llm.prefix_states(prefix_ids).bos_outputs, as_it_is.bos_outputs)


@pytest.mark.parametrize("lone", ["token", "token+bos"])
def test_gradients_are_those_of_small_differences(parts, lone):
    conditioning = create("refined-llm-lora", replace(parts, lone=lone))
    shaken(conditioning.llm_lora.up)
    conditioning.train(False)  # no dropout
    stage = main_stage(conditioning)
    aim = torch.randn(stage.condition(PROMPTS, None)[0].shape, generator=torch.Generator().manual_seed(3))
    weights = list(conditioning.llm_lora.parameters())

    def loss():
        return (stage.condition(PROMPTS, None)[0] * aim).mean()

    slopes = torch.autograd.grad(loss(), weights)
    assert all(bool(slope.any()) for slope in slopes), "every layer's A and B learn"
    size = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
    losses = []
    with torch.no_grad():
        for step in (2e-3, -4e-3):
            for weight, slope in zip(weights, slopes, strict=True):
                weight += step * slope / size
            losses.append(float(loss()))
    assert (losses[0] - losses[1]) / 4e-3 == pytest.approx(float(size), rel=0.02)


def test_states_with_gradients_are_those_without(parts):
    conditioning = create("guided", parts)
    context, llm = conditioning.adapter.context, parts.llm
    plain = context.encode(llm, PROMPTS)
    assert not plain.states.requires_grad
    llm.model.requires_grad_(True)
    with_them = context.encode(llm, PROMPTS, gradients=True)
    assert with_them.states.requires_grad
    assert torch.equal(with_them.states.detach(), plain.states)
    with torch.enable_grad():
        assert not context.encode(llm, PROMPTS).states.requires_grad


def test_states_that_are_read_once_are_refused(parts):
    plain = create("last-hidden", parts)
    with pytest.raises(ConfigError, match="read once cannot be trained"):
        AdapterConditioning(plain.adapter, plain.source, llm_lora=llm_lora(parts.llm))
