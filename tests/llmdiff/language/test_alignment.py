"""Tokens of two tokenizers are held against each other by the characters that they share."""

import pytest
import torch
from tiny.pipelines import build_llm
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmdiff.errors import UnsupportedLLMError
from llmdiff.language.alignment import shared_characters, token_spans


def spelling_llm():
    """A tiny LLM that reads letter by letter."""
    llm = build_llm()
    letters = ["<s>", "</s>", "<unk>", *"abcdefghijklmnop"]
    tokenizer = Tokenizer(models.WordLevel({one: i for i, one in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    llm.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return llm


@pytest.mark.filterwarnings("ignore")
def test_words_are_the_means_of_their_letters_and_bos_is_bos():
    text, how = "a cat", {"template": None, "max_length": 64}
    words, letters = (token_spans(llm, [text], **how)[0] for llm in (build_llm(), spelling_llm()))
    assert words == [(0, 1), (1, 2), (3, 6)]
    assert letters == [(0, 1), *((i, i + 1) for i in range(1, 6))]
    third = 1 / 3
    expected = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, third, third, third]]
    assert torch.allclose(shared_characters(text, words, letters), torch.tensor(expected).double())
    # The blank, which no word has, is held against nothing.
    back = shared_characters(text, letters, words)
    assert back.argmax(1).tolist() == [0, 1, 0, 2, 2, 2]
    assert back.sum(1).tolist() == [1, 1, 0, 1, 1, 1]


def test_a_templates_end_follows_the_prompt_and_what_is_cut_has_no_characters():
    llm = build_llm()
    spans = token_spans(
        llm, ["a red cat", "a cat"], template="the photo of {prompt} on the left", max_length=2
    )
    text_end = [1 + len("a red cat"), 1 + len("a cat")]
    for found, end, own in zip(spans, text_end, ([(1, 2), (3, 6)], [(1, 2), (3, 6)]), strict=True):
        assert found == [(0, 1), *own, (end + 1, end + 3), (end + 4, end + 7), (end + 8, end + 12)]


def test_a_tokenizer_that_does_not_tell_characters_is_refused():
    llm = build_llm()

    class Slow:
        is_fast = False

    llm.tokenizer = Slow()
    with pytest.raises(UnsupportedLLMError, match="use the LLM's fast tokenizer"):
        token_spans(llm, ["a cat"], template=None, max_length=8)
