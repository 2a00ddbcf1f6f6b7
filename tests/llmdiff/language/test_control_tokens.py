"""A user's text never becomes a control token; a template's does; ordinary texts are tokenised as ever."""

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import BertTokenizerLegacy, PreTrainedTokenizerFast

from llmdiff.errors import PromptError
from llmdiff.language import DecoderLLM
from llmdiff.language.control_tokens import plain_ids, plain_options, template_ids

from .conftest import TEXTS, tiny_config, tiny_model, tiny_tokenizer

# What users write: of each, the ids and characters have to be those of the whole tokenizer.
ORDINARY = [
    *TEXTS,
    "a (red:1.3) car, 4k!!! <3 & more",
    "l'été à Zürich — naïve 北京の猫 🐈‍⬛",
    "  two  blanks\tand\nlines ",
    "a<b and c>d, </p> <br/> [INST] {x}",
]


def chat_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    # One with a role of its own, and one that the tokenizer only knows as special, as Llama 3 has by the hundred.
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True)])
    # Of ordinary texts, as GPT-NeoX has for runs of blanks.
    tokenizer.add_tokens([AddedToken("  ", special=False, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_have_the_ids_that_they_had(text: str) -> None:
    tokenizer = chat_tokenizer()
    before = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = plain_ids(tokenizer, text)
    assert ids == before["input_ids"] == template_ids(tokenizer, text)
    assert spans == before["offset_mapping"]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("name", ["<s>", "</s>", "<pad>", "<|im_end|>"])
def test_a_control_token_that_a_prompt_spells_out_is_text(name: str) -> None:
    tokenizer = chat_tokenizer()
    text = f"a sign {name} on a door"
    control = tokenizer.convert_tokens_to_ids(name)
    assert control in template_ids(tokenizer, text)
    ids, spans = plain_ids(tokenizer, text)
    assert control not in ids
    assert "".join(text[start:end] for start, end in spans) == text
    assert tokenizer.decode(ids) == text


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("name", ["<s>", "</s>", "<|im_end|>"])
def test_a_template_means_its_control_tokens_and_its_prompt_does_not(name: str) -> None:
    tokenizer = chat_tokenizer()
    config = tiny_config("llama")
    config.vocab_size = len(tokenizer)
    llm = DecoderLLM(tiny_model(config), tokenizer, id="chat")
    control = tokenizer.convert_tokens_to_ids(name)
    tokens = llm.tokenize(
        f"a {name} b", template=f"{name}{{prompt}}{name}Again: {{prompt}}", contexts=[f"so {name}"]
    )
    assert tokens.prefix_ids.count(control) == 1
    assert tokens.context_ids[0].count(control) == 1  # the template's, between its two prompts
    # BOS begins every row.
    assert tokens.input_ids[0].tolist().count(control) == (name == "<s>")


@pytest.mark.hostile("texts")
def test_weights_stay_on_their_words_beside_a_control_token() -> None:
    llm = DecoderLLM(tiny_model(tiny_config("llama")), tiny_tokenizer(), id="chat")
    tokens = llm.tokenize("a </s> (red:2) dog", weighted=True)
    assert tokens.weights is not None
    weighted = tokens.input_ids[0][tokens.weights[0] == 2].tolist()
    assert llm.tokenizer.decode(weighted).strip() == "red"


@pytest.mark.hostile("texts")
def test_a_vocabulary_that_holds_the_name_as_a_word_is_cut_in_it() -> None:
    words = ["<s>", "</s>", "<unk>", "a", "b", " ", "<", "/", "s", ">", "/s>"]
    backend = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    ids, spans = plain_ids(tokenizer, "a </s> b")
    assert [words[i] for i in ids] == ["a", " ", "<", "/s>", " ", "b"]
    assert spans == [(0, 1), (1, 2), (2, 3), (3, 6), (6, 7), (7, 8)]


@pytest.mark.hostile("texts")
def test_a_slow_tokenizer_reads_no_control_token_either(tmp_path: Any) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "[", "]", "sep", "s", "##ep"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    assert not tokenizer.is_fast
    assert tokenizer.convert_tokens_to_ids("[SEP]") in template_ids(tokenizer, "a [SEP] dog")
    ids, spans = plain_ids(tokenizer, "a [SEP] dog")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "[", "sep", "]", "dog"]
    assert spans == []
    assert plain_ids(tokenizer, "a dog")[0] == template_ids(tokenizer, "a dog")


@pytest.mark.hostile("texts")
def test_padded_calls_split_names_and_keep_what_the_tokenizer_adds() -> None:
    tokenizer = chat_tokenizer()
    texts = ["a dog", "a <|im_end|> dog"]
    assert plain_options(tokenizer, texts[:1]) == {}
    rows = tokenizer(texts, padding=True, **plain_options(tokenizer, texts))["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in rows[1]
    assert rows[0][-1] == tokenizer.pad_token_id


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("prompts", ["a cat \ud83d", ["a dog", "a cat \ud83d"]])
def test_half_a_character_is_refused_by_name(llama: DecoderLLM, prompts: Any) -> None:
    with pytest.raises(
        PromptError, match=r"prompts\[[01]\] is not valid UTF-8 \(U\+D83D at character 6"
    ) as caught:
        llama.tokenize(prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("prompt", ["\ufeffa red dog", "a red dog\u200b", "\u200b\ufeffa red dog\ufeff"])
def test_invisible_characters_at_the_ends_change_nothing(llama: DecoderLLM, prompt: str) -> None:
    assert llama.tokenize(prompt).input_ids.equal(llama.tokenize("a red dog").input_ids)
    # Blanks are content to a tokenizer, and those inside a text may be meant.
    assert not llama.tokenize("a red\u200bdog").input_ids.equal(llama.tokenize("a reddog").input_ids)
    assert llama.tokenize("\ufeff a dog").input_ids.equal(llama.tokenize(" a dog").input_ids)
