"""A closed LLM's answers in an open LLM's states: the same as reading both by hand."""

import pytest
import torch
import typer.main

from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.drawing.models import Models, advice_of
from llmdiff.errors import ConfigError, PromptError
from llmdiff.language.advice import Advice
from llmdiff.language.advised import encode_with_advice
from llmdiff.language.blocks import run_blocks
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.proxy import ClosedLLM, ProxySettings
from llmdiff_lab.cli.main import app as laboratory

from .conftest import PROMPTS


class _Answers(ClosedLLM):
    """A closed LLM whose answers are known beforehand, as if its cache held them."""

    def __init__(self, known, **settings):
        super().__init__(ProxySettings(url="http://127.0.0.1:9/v1", model="m", retries=0, **settings))
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
    got = encode_with_advice(context, llama, ["an old automobile", "a cat"], Advice(closed=closed))
    advised = context.encode(llama, ["a car"], contexts=["an old automobile"])
    alone = context.encode(llama, ["a cat"])
    tokens = advised.states.shape[1]
    assert torch.allclose(got.states[0, :tokens], advised.states[0], atol=1e-4)
    assert torch.allclose(got.states[1, : alone.states.shape[1]], alone.states[0], atol=1e-4)
    assert not torch.allclose(advised.states, context.encode(llama, ["a car"]).states, atol=1e-3)


def test_several_answers_are_the_mean_over_the_prompts_own_tokens(llama, context):
    closed = _Answers({"a red apple": ("in the snow", "a big dog")}, answers=2)
    got = encode_with_advice(context, llama, ["a red apple", "a cat"], Advice(closed=closed, keep="prompt"))
    each = [
        context.encode(llama, ["a red apple"], contexts=[answer]).states[0]
        for answer in closed.known["a red apple"]
    ]
    assert torch.allclose(got.states[0, : len(each[0])], (each[0] + each[1]) / 2, atol=1e-4)
    alone = context.encode(llama, ["a cat"])
    assert torch.allclose(got.states[1][got.token_mask[1]], alone.states[0], atol=1e-4)
    assert got.states.shape[0] == len(got.token_mask) == 2


def test_no_answers_change_no_bit(llama, context):
    got = encode_with_advice(context, llama, PROMPTS, Advice(closed=_Answers({})))
    assert torch.equal(got.states, context.encode(llama, PROMPTS).states)


def test_an_ensemble_is_asked_for_with_answers_that_differ_and_the_prompt_is_kept():
    via = {"via": "http://127.0.0.1:9/v1", "via_model": "m"}
    assert advice_of(Models()) is None
    one, three = advice_of(Models(**via)), advice_of(Models(**via, via_answers=3))
    assert (one.keep, one.closed.settings.answers, one.closed.settings.temperature) == ("answer", 1, 0.0)
    assert (three.keep, three.closed.settings.answers) == ("prompt", 3)
    assert three.closed.settings.temperature > 0
    with pytest.raises(ConfigError, match="via_answers is 0"):
        Models(**via, via_answers=0)


@pytest.mark.parametrize(
    "verb",
    ["generate", "compare", "batch", "evaluate", "serve", "ui", "inspect scores", "inspect attention"],
)
def test_every_command_that_reads_prompts_takes_a_closed_llm(verb):
    command = typer.main.get_command(laboratory if verb.startswith("inspect") else app)
    for name in verb.split():
        command = command.commands[name]
    options = {option for one in command.params for option in one.opts}
    assert {"--via", "--via-model"} <= options
    assert "--via-answers" in options or verb == "inspect scores"  # which shows one reading


def test_kept_answers_have_no_mean():
    with pytest.raises(ConfigError, match="no mean"):
        Advice(closed=_Answers({}, answers=2))


def test_blank_prompts_and_those_not_in_ask_are_not_asked_about(llama, context):
    closed = _Answers({"a cat": ("a dog",), "": ("a dog",), "a red apple": ("a dog",)})
    got = encode_with_advice(
        context, llama, ["a cat", "", "a red apple"], Advice(closed=closed), ask={"a red apple", ""}
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
    controller.llm.advice = Advice(closed=_Answers({"zebra": ("b d f",), "blurry": ("sharp",)}))
    with controller.attached(sd_pipe):
        kept = draw(sd_pipe, "zebra", negative_prompt="blurry")
        same = draw(sd_pipe, "b d f", negative_prompt="blurry")
    assert torch.allclose(
        same, expected, atol=1e-5
    )  # nothing was answered, and the negative prompt not asked about
    assert not torch.allclose(kept, expected, atol=1e-4)  # the prompt stands before the answer
    states = controller.encode("zebra").states
    by_hand = controller.adapter.context.encode(controller.llm, ["b d f"], contexts=["zebra"]).states
    assert torch.allclose(states, by_hand, atol=1e-5)
