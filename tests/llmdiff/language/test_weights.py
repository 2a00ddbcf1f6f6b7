"""Prompt weights: the grammar, which tokens get which weight, and what a weight does."""

import random

import pytest
import torch

from llmdiff.errors import PromptError
from llmdiff.language import ContextEncoding, DecoderLLM, Encoding
from llmdiff.language.weights import parse_weights

from .conftest import tiny_tokenizer
from .test_encoding import context_encoding

PLAIN = "two blue stars above a big dog in the snow"


def parts(prompt: str) -> list[tuple[str, float]]:
    """Neighbouring characters of one weight together."""
    parsed = parse_weights(prompt)
    assert len(parsed.text) == len(parsed.weights)
    found: list[tuple[str, float]] = []
    for char, weight in zip(parsed.text, parsed.weights, strict=True):
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + char, weight)
        else:
            found.append((char, weight))
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a red car", [("a red car", 1.0)]),
        ("a (red:1.3) car", [("a ", 1.0), ("red", 1.3), (" car", 1.0)]),
        ("(a red car:0)", [("a red car", 0.0)]),
        ("(a:.5)(b: 2. )", [("a", 0.5), ("b", 2.0)]),
        ("((a:1.5) b:2)", [("a", 3.0), (" b", 2.0)]),
        ("(a (b (c:2):2):2)", [("a ", 2.0), ("b ", 4.0), ("c", 8.0)]),
        ("(note: a cat:2)", [("note: a cat", 2.0)]),
        ("a cat (black)", [("a cat (black)", 1.0)]),
        ("[a cat] (a:soon) (:2) (a:) (a:nan)", [("[a cat] (a:soon) (:2) (a:) (a:nan)", 1.0)]),
        ("((a cat:2))", [("(", 1.0), ("a cat", 2.0), (")", 1.0)]),
        (r"\(red:1.3\)", [("(red:1.3)", 1.0)]),
        (r"(at 10\:30)", [("(at 10:30)", 1.0)]),
        (r"(at 10\:30:2)", [("at 10:30", 2.0)]),
        (r"(a \(b\):2)", [("a (b)", 2.0)]),
        (r"C:\new \\(a:2)", [("C:\\new \\", 1.0), ("a", 2.0)]),
        ("a) (b:2", [("a) (b:2", 1.0)]),
        ("(((a:2)", [("((", 1.0), ("a", 2.0)]),
        ("((a :1:2))", [("(", 1.0), ("a :1", 2.0), (")", 1.0)]),
    ],
)
def test_grammar(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parts(prompt) == expected


@pytest.mark.parametrize("weight", ["-1", "10.5", "30", "-0.1"])
def test_refuses_weights_out_of_range_and_says_how_to_write_text(weight: str) -> None:
    with pytest.raises(PromptError, match=r"expected 0 to 10; if it is text, write") as caught:
        parse_weights(f"a train (leaves 10:{weight})")
    assert rf'"\(leaves 10:{weight}\)"' in str(caught.value)


def escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "()\\:" else char for char in text)


def test_any_text_survives_escaping() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab 1.2:()\\[]", k=draw.randrange(16)))
        parsed = parse_weights(escaped(text))
        assert parsed.text == text
        assert set(parsed.weights) <= {1.0}


def test_a_group_of_weight_one_is_its_text() -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices("ab :()\\", k=1 + draw.randrange(12)))
        assert parse_weights(f"({escaped(text)}:1)") == parse_weights(escaped(text))


def test_deep_nesting_takes_no_time() -> None:
    assert parse_weights("(" * 20_000 + ")" * 20_000).text == "(" * 20_000 + ")" * 20_000


def test_every_token_gets_the_weight_of_its_characters(llama: DecoderLLM) -> None:
    tokens = llama.tokenize(["a (red apple:1.5)", "a dog"], weighted=True)
    plain = llama.tokenize(["a red apple", "a dog"])
    assert torch.equal(tokens.input_ids, plain.input_ids)
    assert plain.weights is None
    assert tokens.weights is not None
    words = llama.tokenizer.convert_ids_to_tokens(tokens.input_ids[0][tokens.token_mask[0]].tolist())
    weighted = "".join(
        word for word, weight in zip(words, tokens.weights[0].tolist(), strict=False) if weight == 1.5
    )
    assert weighted.replace("Ġ", " ").strip() == "red apple"
    assert torch.equal(tokens.weights[1], torch.ones_like(tokens.weights[1]))


def test_a_token_across_a_border_gets_the_mean() -> None:
    assert parse_weights("(ab:2)cd").of_span(0, 4) == 1.5
    assert parse_weights("a(  b:2)").of_span(1, 4) == 2.0  # blanks do not count
    assert parse_weights("a( :2)b").of_span(1, 2) == 2.0  # unless there is nothing else
    assert parse_weights("(ab:1.3)").of_span(0, 2) == 1.3


def test_all_bytes_of_a_character_get_its_weight(llama: DecoderLLM) -> None:
    tokens = llama.tokenize("(雪:2)の(\U0001f427:3)", weighted=True)
    assert tokens.weights is not None
    assert tokens.weights[0].tolist() == [1.0] + [2.0] * 3 + [1.0] * 3 + [3.0] * 4


@pytest.mark.parametrize(
    "template", ["Picture: {prompt}", "{prompt}\nAgain: {prompt}", "{prompt} in the snow"]
)
def test_templates_have_no_weight_and_shift_none(llama: DecoderLLM, template: str) -> None:
    tokens = llama.tokenize("a (big:2) dog", template=template, weighted=True)
    assert tokens.weights is not None
    chosen = tokens.input_ids[0][tokens.weights[0] == 2]
    assert llama.tokenizer.decode(chosen.tolist()).strip() == "big"
    assert torch.equal(tokens.input_ids, llama.tokenize("a big dog", template=template).input_ids)


def test_weights_are_cut_with_the_prompt(llama: DecoderLLM) -> None:
    with pytest.warns(UserWarning, match="were cut"):
        tokens = llama.tokenize("(!!!!!!!!!!:2)", max_length=4, weighted=True)
    assert tokens.weights is not None
    assert tokens.weights.tolist() == [[1.0, 2.0, 2.0, 2.0, 2.0]]


def test_off_by_default_brackets_are_text(llama: DecoderLLM) -> None:
    ids = llama.tokenize("a (big:2) dog").input_ids[0, 1:].tolist()
    assert llama.tokenizer.decode(ids) == "a (big:2) dog"


def test_a_tokenizer_without_offsets_is_refused(llama: DecoderLLM) -> None:
    tokenizer = tiny_tokenizer()
    type_without_offsets = type("SlowTokenizer", (type(tokenizer),), {"is_fast": False})
    tokenizer.__class__ = type_without_offsets
    llm = DecoderLLM(llama.model, tokenizer, id="slow")
    assert llm.tokenize("a dog", weighted=True).weights is None
    with pytest.raises(PromptError, match="SlowTokenizer does not say which characters"):
        llm.tokenize("a (dog:2)", weighted=True)


@pytest.mark.parametrize("encoding", ["guided", "paper"])
def test_weight_one_changes_no_bit(llama: DecoderLLM, encoding: Encoding) -> None:
    context = context_encoding(llama, encoding)
    plain = context.encode(llama, PLAIN).states
    for prompt in (PLAIN, f"({PLAIN}:1)", "two ((blue:2) stars:0.5) above a big dog in the snow"):
        found = context.encode(llama, prompt, weighted=True).states
        same = torch.tensor([weight == 1 for weight in _weights(llama, prompt)])
        assert torch.equal(found[0, same], plain[0, same])


def _weights(llm: DecoderLLM, prompt: str) -> list[float]:
    weights = llm.tokenize(prompt, weighted=True).weights
    return [1.0] * llm.tokenize(PLAIN).input_ids.shape[1] if weights is None else weights[0].tolist()


@pytest.mark.parametrize("encoding", ["guided", "paper"])
def test_a_weight_scales_the_scores_of_its_tokens_only(llama: DecoderLLM, encoding: Encoding) -> None:
    context = context_encoding(llama, encoding)
    plain = context.encode(llama, PLAIN).states[0]
    alone = context.encode(llama, f"({PLAIN}:0)", weighted=True).states[0]
    for weight in (0.3, 1.7, 4.0):
        prompt = PLAIN.replace("big dog", f"(big dog:{weight})")
        found = context.encode(llama, prompt, weighted=True).states[0]
        chosen = torch.tensor([w != 1 for w in _weights(llama, prompt)])
        assert 0 < int(chosen.sum()) < len(chosen)
        assert torch.equal(found[~chosen], plain[~chosen])
        # c is linear in the weight.
        expected = alone + weight * (plain - alone)
        torch.testing.assert_close(found[chosen], expected[chosen], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found[chosen], plain[chosen], atol=1e-2)


def test_weight_zero_leaves_the_token_alone(llama: DecoderLLM) -> None:
    paper = context_encoding(llama, "paper")
    x0 = llama.block_updates(PLAIN).x0 / paper.x0_scale
    assert torch.equal(paper.encode(llama, f"({PLAIN}:0)", weighted=True).states, x0)


def test_stored_states_take_the_same_weights(llama: DecoderLLM) -> None:
    context: ContextEncoding = context_encoding(llama)
    prompts = ["a (red:1.5) apple", PLAIN]
    weights = llama.tokenize(prompts, weighted=True).weights
    states = llama.block_updates(["a red apple", PLAIN], lone="token+bos")
    torch.testing.assert_close(
        context.sum(states, token_weights=weights),
        context.encode(llama, prompts, weighted=True).states,
        atol=1e-5,
        rtol=1e-5,
    )
