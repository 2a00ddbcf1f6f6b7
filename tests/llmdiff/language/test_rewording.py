"""A closed LLM's answers in an open LLM's states: the same as reading both by hand."""

import pytest
import torch

from llmdiff.controller import LLMController
from llmdiff.drawing.models import Models
from llmdiff.errors import ConfigError, PromptError
from llmdiff.language.blocks import run_blocks
from llmdiff.language.closed_llm import ClosedLLM, ClosedLLMSettings
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.rewording import Rewording, encode_reworded

from .conftest import PROMPTS


class _Answers(ClosedLLM):
    """A closed LLM whose answers are known beforehand, as if its cache held them."""

    def __init__(self, known, **settings):
        super().__init__(ClosedLLMSettings(url="http://127.0.0.1:9/v1", model="m", retries=0, **settings))
        self.known = known

    def answers(self, prompt):
        return self.known.get(prompt, ())


@pytest.fixture
def context(llama):
    context = ContextEncoding(llama.num_blocks, llama.hidden_size)
    context.calibrate(llama, PROMPTS)
    return context


def test_contexts_are_seen_and_dropped(llama):
    prompt, before = "a red apple", "two blue stars"
    tokens = llama.tokenize([prompt], contexts=[before])
    plain = llama.tokenize([prompt])
    assert torch.equal(tokens.input_ids, plain.input_ids)
    # By hand: one long text, of which the prompt's tokens are looked at.
    ids = [0, *llama.tokenizer(before + "\n")["input_ids"], *llama.tokenizer(prompt)["input_ids"]]
    expected = llama.model.base_model(torch.tensor([ids])).last_hidden_state[
        0, -(plain.input_ids.shape[1] - 1) :
    ]
    last = []
    run_blocks(llama, tokens, lone=None, visit=lambda *_: None, on_last_hidden_state=last.append)
    assert torch.allclose(last[0][0, 1:], expected, atol=1e-4)


def test_a_blank_context_is_none(llama):
    tokens = llama.tokenize(["a", "b"], contexts=["", "  "])
    assert tokens.context_ids == ((), ())
    with pytest.raises(PromptError, match="contexts are 1"):
        llama.tokenize(["a", "b"], contexts=["x"])


def test_the_answer_is_kept_and_the_prompt_read_before_it(llama, context):
    closed = _Answers({"an old automobile": ("a car",)})
    got = encode_reworded(context, llama, ["an old automobile", "a cat"], Rewording(closed=closed))
    by_hand = context.encode(llama, ["a car"], contexts=["an old automobile"])
    alone = context.encode(llama, ["a cat"])
    tokens = by_hand.states.shape[1]
    assert torch.allclose(got.states[0, :tokens], by_hand.states[0], atol=1e-4)
    assert torch.allclose(got.states[1, : alone.states.shape[1]], alone.states[0], atol=1e-4)
    assert not torch.allclose(by_hand.states, context.encode(llama, ["a car"]).states, atol=1e-3)


def test_several_answers_are_the_mean_over_the_prompts_own_tokens(llama, context):
    closed = _Answers({"a red apple": ("in the snow", "a big dog")}, answers=2)
    got = encode_reworded(context, llama, ["a red apple", "a cat"], Rewording(closed=closed, keep="prompt"))
    each = [
        context.encode(llama, ["a red apple"], contexts=[answer]).states[0]
        for answer in closed.known["a red apple"]
    ]
    assert torch.allclose(got.states[0, : len(each[0])], (each[0] + each[1]) / 2, atol=1e-4)
    alone = context.encode(llama, ["a cat"])
    assert torch.allclose(got.states[1][got.token_mask[1]], alone.states[0], atol=1e-4)
    assert got.states.shape[0] == len(got.token_mask) == 2


def test_no_answers_change_no_bit(llama, context):
    got = encode_reworded(context, llama, PROMPTS, Rewording(closed=_Answers({})))
    assert torch.equal(got.states, context.encode(llama, PROMPTS).states)


def test_an_ensemble_is_asked_for_with_answers_that_differ_and_the_prompt_is_kept():
    address = {"reword_url": "http://127.0.0.1:9/v1", "reword_model": "m"}
    assert Models().control.rewording is None
    one, three = (Models(**address, reword_answers=count).control.rewording for count in (1, 3))
    assert (one.keep, one.closed.settings.answers, one.closed.settings.temperature) == ("answer", 1, 0.0)
    assert (three.keep, three.closed.settings.answers) == ("prompt", 3)
    assert three.closed.settings.temperature > 0
    with pytest.raises(ConfigError, match="reword_answers is 0"):
        Models(**address, reword_answers=0)


def test_kept_answers_have_no_mean():
    with pytest.raises(ConfigError, match="cannot be averaged"):
        Rewording(closed=_Answers({}, answers=2))


def test_blank_prompts_and_those_not_in_reword_are_not_reworded(llama, context):
    closed = _Answers({"a cat": ("a dog",), "": ("a dog",), "a red apple": ("a dog",)})
    got = encode_reworded(
        context, llama, ["a cat", "", "a red apple"], Rewording(closed=closed), reword={"a red apple", ""}
    )
    alone = context.encode(llama, ["a cat", ""])
    for row in range(2):
        assert torch.allclose(
            got.states[row][got.token_mask[row]], alone.states[row][alone.token_mask[row]], atol=1e-4
        )


def test_an_attached_pipeline_draws_what_was_answered(tiny_llm, sd_pipe, draw):
    controller = LLMController.create(tiny_llm, sd_pipe)
    with controller.attached(sd_pipe):
        expected = draw(sd_pipe, "b d f", negative_prompt="blurry")
    rewording = Rewording(closed=_Answers({"zebra": ("b d f",), "blurry": ("sharp",)}))
    with controller.attached(sd_pipe, rewording=rewording):
        kept = draw(sd_pipe, "zebra", negative_prompt="blurry")
        same = draw(sd_pipe, "b d f", negative_prompt="blurry")
    assert torch.allclose(
        same, expected, atol=1e-5
    )  # nothing was answered, and the negative prompt not asked about
    assert not torch.allclose(kept, expected, atol=1e-4)  # the prompt stands before the answer
    states = controller.encode("zebra", rewording=rewording).states
    by_hand = controller.adapter.context.encode(controller.llm, ["b d f"], contexts=["zebra"]).states
    assert torch.allclose(states, by_hand, atol=1e-5)
