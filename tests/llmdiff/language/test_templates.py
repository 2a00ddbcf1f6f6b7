"""Instruction templates: the LLM's own chat format up to the prompt, or the instruction alone."""

import pytest

from llmdiff.errors import ConfigError
from llmdiff.language import DecoderLLM

from .conftest import tiny_llm

CHAT = (
    "{{ bos_token }}{% for message in messages %}user: {{ message['content'] }}\nend\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_without_a_chat_format_the_instruction_stands_alone(llama: DecoderLLM) -> None:
    assert llama.instruction_template("Picture: ") == "Picture: {prompt}"
    assert llama.instruction_template().endswith("Picture: {prompt}")


def test_the_chat_format_is_kept_up_to_the_prompt() -> None:
    llm = tiny_llm("llama")
    llm.tokenizer.chat_template = CHAT
    template = llm.instruction_template("Picture: ")
    assert template == "<s>user: Picture: {prompt}"
    tokens = llm.tokenize("a dog", template=template)
    assert llm.tokenizer.decode(list(tokens.prefix_ids)) == "<s>user: Picture:"  # one BOS
    assert llm.tokenizer.decode(tokens.input_ids[0].tolist()) == "<s> a dog"


def test_refuses_a_format_that_changes_the_words_or_an_instruction_with_the_place() -> None:
    llm = tiny_llm("llama")
    with pytest.raises(ConfigError, match="expected only the text before it"):
        llm.instruction_template("Picture: {prompt}")
    for chat in ("{{ messages[0]['content'] | upper }}", "{{ messages[0]['content'] * 2 }}", "nothing"):
        llm.tokenizer.chat_template = chat
        with pytest.raises(ConfigError, match="does not show the user's words"):
            llm.instruction_template("Picture: ")


def test_embedded_llm_has_a_chat_format(smollm2: DecoderLLM) -> None:
    template = smollm2.instruction_template("Picture: ")
    assert template.endswith("<|im_start|>user\nPicture: {prompt}")
    tokens = smollm2.tokenize("a dog", template=template)
    assert smollm2.tokenizer.decode(tokens.input_ids[0, 1:].tolist()) == " a dog"
    assert tokens.prefix_ids.count(tokens.prefix_ids[0]) == template.count("<|im_start|>")
