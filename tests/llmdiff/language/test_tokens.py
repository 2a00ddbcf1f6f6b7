"""BOS, templates, cutting, and prompts that are none."""

import warnings
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmdiff.errors import ConfigError, LLMDiffError, PromptError, UnsupportedLLMError
from llmdiff.language import DecoderLLM

from .conftest import tiny_config, tiny_llm, tiny_model, tiny_tokenizer


def text(llm: DecoderLLM, ids: Any) -> str:
    return str(llm.tokenizer.decode(list(ids)))


def test_every_prompt_starts_with_bos(llama: DecoderLLM) -> None:
    tokens = llama.tokenize(["a red apple", ""])
    assert tokens.prefix_ids == (0,)
    assert tokens.input_ids[:, 0].tolist() == [0, 0]
    assert tokens.token_mask[1].tolist() == [True] + [False] * (tokens.input_ids.shape[1] - 1)
    assert tokens.input_ids[1, 1:].sum() == 0
    assert text(llama, tokens.input_ids[0]) == "<s>a red apple"


@pytest.mark.parametrize(
    ("template", "prefix", "context", "kept"),
    [
        ("{prompt}", "<s>", "", "<s>a dog"),
        ("Picture: {prompt}", "<s>Picture:", "", "<s> a dog"),
        ("Picture: {prompt}, drawn", "<s>Picture:", "", "<s> a dog, drawn"),
        ("{prompt}\nAgain: {prompt}", "<s>", "a dog\nAgain:", "<s> a dog"),
        ("In: {prompt}\nAgain: {prompt}.", "<s>In:", " a dog\nAgain:", "<s> a dog."),
        ("<s>{a} {prompt}", "<s>{a}", "", "<s> a dog"),
    ],
)
def test_template_parts(llama: DecoderLLM, template: str, prefix: str, context: str, kept: str) -> None:
    tokens = llama.tokenize("a dog", template=template)
    assert text(llama, tokens.prefix_ids) == prefix
    assert text(llama, tokens.context_ids[0]) == context
    assert text(llama, tokens.input_ids[0]) == kept


def test_sentencepiece_tokenizers_get_no_second_blank(llama: DecoderLLM) -> None:
    words = ["<s>", "</s>", "<unk>", "\u2581", "\u2581Picture:", "\u2581a", "\u2581dog"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    backend = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    llm = DecoderLLM(llama.model, tokenizer, id="sentencepiece")
    tokens = llm.tokenize("a dog", template="Picture: {prompt}")
    assert [words[i] for i in (*tokens.prefix_ids, *tokens.input_ids[0, 1:].tolist())] == [
        "<s>",
        "\u2581Picture:",
        "\u2581a",
        "\u2581dog",
    ]


@pytest.mark.parametrize("template", ["no place", "{prompt} {prompt} {prompt}", ""])
def test_refuses_templates_without_one_or_two_places(llama: DecoderLLM, template: str) -> None:
    with pytest.raises(ConfigError, match="expected once or twice"):
        llama.tokenize("a dog", template=template)


def test_eos_serves_as_bos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    llm = DecoderLLM(tiny_model(tiny_config("gpt2")), tokenizer, id="gpt2-like")
    assert llm.tokenize("a dog").prefix_ids == (1,)


def test_refuses_a_tokenizer_without_first_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UnsupportedLLMError, match="neither a BOS nor an EOS"):
        DecoderLLM(tiny_model(tiny_config("llama")), tokenizer, id="llama")


def test_long_prompt_is_cut_with_a_warning_that_says_how_much() -> None:
    llm = tiny_llm("llama", max_position_embeddings=4096)
    prompt = "!" * 10_000  # one token each
    with pytest.warns(
        UserWarning, match=r"prompts\[1\] has 10000 tokens: the last 9488 were cut, the first 512"
    ):
        tokens = llm.tokenize(["a dog", prompt])
    assert tokens.input_ids.shape == (2, 513)
    with pytest.warns(UserWarning, match="the last 9980 were cut") as caught:
        tokens = llm.tokenize(prompt, template="{prompt}\nAgain:{prompt}", max_length=20)
    assert len(caught) == 1
    assert tokens.input_ids.shape == (1, 21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.tokenize("!" * 512)


def test_warning_points_at_the_caller(llama: DecoderLLM) -> None:
    with pytest.warns(UserWarning, match="cut") as caught:
        llama.tokenize("!" * 30, max_length=20)
    assert caught[0].filename == __file__


def test_prompts_fit_the_llms_positions(any_llm: DecoderLLM) -> None:
    if any_llm.max_positions is None:  # Bloom
        assert any_llm.last_hidden_states("!" * 300).states.shape[1] == 301
        return
    with pytest.warns(UserWarning, match="were cut"):
        encoding = any_llm.last_hidden_states("!" * 300, template="Picture: {prompt} in the snow")
    assert bool(encoding.states.isfinite().all())
    with pytest.raises(ConfigError, match="no room for a prompt"):
        any_llm.tokenize("a dog", template="!" * 300 + "{prompt}")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts is a NoneType"),
        (3, "prompts is a int"),
        (b"a dog", "prompts is a bytes"),
        (["a dog", None], r"prompts\[1\] is a NoneType"),
        (["a dog", 2.5], r"prompts\[1\] is a float"),
        ([], "prompts is empty"),
    ],
)
def test_refuses_prompts_that_are_not_text(llama: DecoderLLM, prompts: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        llama.tokenize(prompts)
    assert isinstance(caught.value, LLMDiffError)
    assert "\n" not in str(caught.value)


def test_max_length_must_leave_a_token(llama: DecoderLLM) -> None:
    with pytest.raises(ConfigError, match="max_length is 0"):
        llama.tokenize("a dog", max_length=0)


def test_words_that_the_tokenizer_does_not_know_are_counted_in_a_warning(llama: DecoderLLM) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    llm = DecoderLLM(llama.model, tokenizer, id="words")
    with pytest.warns(UserWarning, match=r"prompts\[1\] has 2 of 3 tokens that the LLM's tokenizer does not"):
        llm.tokenize(["a dog", "a purple cow"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.tokenize("a dog")
        tokenizer.unk_token = "</s>"  # as GPT-2 has it
        llm.tokenize("a dog </s>")
