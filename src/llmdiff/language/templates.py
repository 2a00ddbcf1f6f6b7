"""Instruction templates: an instruction before the prompt, in the LLM's chat format."""

from typing import Any

from llmdiff.errors import ConfigError
from llmdiff.language.tokens import PLACEHOLDER

INSTRUCTION = "Describe the picture in simple words: which object is where, and what is it called? Picture: "


def instruction_template(tokenizer: Any, instruction: str = INSTRUCTION) -> str:
    """Return the instruction and `{prompt}` as a user's turn of the tokenizer's chat format, up to `{prompt}`.

    Text that the format puts after the user's words is left out, because its tokens would be kept and say nothing
    about the prompt. Without a chat format the result is the instruction and `{prompt}`. A date in the format
    (Llama 3) is the day of this call; the template is stored, so it stays the same.

    Raises:
        ConfigError: the instruction contains `{prompt}`, or the chat format changes the user's words.
    """
    if PLACEHOLDER in instruction:
        raise ConfigError(
            f"instruction {instruction!r} contains {PLACEHOLDER}, expected only the text before it; pass the "
            "whole text as the template instead"
        )
    words = f"{instruction}{PLACEHOLDER}"
    if not getattr(tokenizer, "chat_template", None):
        return words
    chat = str(tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False))
    before, found, _ = chat.partition(PLACEHOLDER)
    if not found or chat.count(PLACEHOLDER) != 1 or not before.endswith(instruction):
        raise ConfigError(
            f"the chat format of {getattr(tokenizer, 'name_or_path', '')!r} does not show the user's words as "
            "they are; write the template by hand"
        )
    return f"{before}{PLACEHOLDER}"
