"""Prompt weights through an attached pipeline: only where asked for, only on the LLM's side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS

from llmdiff.adapter import LLMDiffAdapter, attach, detach, is_attached
from llmdiff.errors import ConfigError, PromptError

Draw = Callable[..., torch.Tensor]
PLAIN, WEIGHTED = "a red cat", "a (red:3) cat"


@pytest.mark.parametrize("family", list(BUILDERS))
def test_a_weight_changes_the_picture_and_weight_one_does_not(
    family: str, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    pipe = BUILDERS[family]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm), weighted=True)
    plain = draw(pipe, PLAIN)
    assert torch.equal(draw(pipe, "a (red:1) cat"), plain)
    assert (draw(pipe, WEIGHTED) - plain).abs().max() > 1e-5
    pair = draw(pipe, [WEIGHTED, PLAIN])
    assert (pair[1] - plain[0]).abs().max() < 1e-3
    detach(pipe)


def test_negative_prompts_are_weighted_too(pipe: Any, tiny_llm: Any, loud_adapter: Any, draw: Draw) -> None:
    attach(pipe, tiny_llm, loud_adapter, weighted=True)
    plain = draw(pipe, "a dog", negative_prompt=PLAIN)
    assert torch.equal(draw(pipe, "a dog", negative_prompt="(a red cat:1)"), plain)
    assert (draw(pipe, "a dog", negative_prompt=WEIGHTED) - plain).abs().max() > 1e-5


def test_without_being_asked_brackets_are_text(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    attach(pipe, tiny_llm, loud_adapter)
    with pytest.warns(UserWarning, match="4 of 7 tokens that the LLM's tokenizer does not know"):
        found = draw(pipe, WEIGHTED)
    detach(pipe)
    attach(pipe, tiny_llm, loud_adapter, weighted=True)
    assert (draw(pipe, WEIGHTED) - found).abs().max() > 1e-5


@pytest.mark.parametrize("settings", [{"scale": 0.5}, {"keep_base_text": True}])
def test_the_base_reads_the_prompt_without_weights(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, settings: dict[str, Any]
) -> None:
    attach(pipe, tiny_llm, loud_adapter, weighted=True, **settings)
    given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    found, expected = (
        pipe.encode_prompt(prompt=prompt, negative_prompt="green", **given)[0] for prompt in (WEIGHTED, PLAIN)
    )
    ours = loud_adapter.phi.out_features + loud_adapter.phi.in_features
    assert torch.equal(found[..., ours:], expected[..., ours:])
    assert not torch.equal(found[..., :ours], expected[..., :ours])


def test_scale_zero_is_the_base_of_the_plain_prompt(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    base = draw(pipe, [PLAIN, "a dog"], negative_prompt=["two dog", ""])
    attach(pipe, tiny_llm, loud_adapter, scale=0.0, weighted=True)
    assert torch.equal(draw(pipe, [WEIGHTED, "a dog"], negative_prompt=["(two:2) dog", ""]), base)
    detach(pipe)


@pytest.mark.parametrize(
    ("prompt", "message"), [("a (red:11) cat", "weight 11 .* is out of range"), ("( :2)", "prompt is blank")]
)
def test_wrong_weights_are_refused_and_change_nothing(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, prompt: str, message: str
) -> None:
    base = draw(pipe)
    attach(pipe, tiny_llm, loud_adapter, weighted=True)
    ours = draw(pipe)
    with pytest.raises(PromptError, match=message):
        draw(pipe, prompt)
    assert torch.equal(draw(pipe), ours)
    detach(pipe)
    assert torch.equal(draw(pipe), base)


def test_states_from_elsewhere_cannot_be_weighted(sd_pipe: Any, tiny_llm: Any, make_adapter: Any) -> None:
    adapter = make_adapter(sd_pipe, tiny_llm, encoding=None)
    with pytest.raises(ConfigError, match="no scores to weigh"):
        attach(sd_pipe, tiny_llm, adapter, weighted=True)
    assert not is_attached(sd_pipe)
