"""Instruction templates: an instruction in front of the prompt, in the chat format an LLM was trained on."""

from typing import Any

from llmdiff.errors import ConfigError
from llmdiff.language.tokens import PLACEHOLDER

INSTRUCTION = "Describe the picture in simple words: which object is where, and what is it called? Picture: "


def instruction_template(tokenizer: Any, instruction: str = INSTRUCTION) -> str:
    """Returns the instruction and `{prompt}` as a user's turn of the tokenizer's chat format, up to `{prompt}`.

    What the format puts behind the user's words is left out: those tokens would be kept and tell nothing of
    the prompt. A tokenizer without a chat format gives the instruction and `{prompt}` alone. A date that the
    format writes (Llama 3) is the day of this call; the template is stored, so it stays the same.

    Raises:
        ConfigError: the instruction holds `{prompt}`, or the chat format does not show the user's words as
            they are.
    """
    if PLACEHOLDER in instruction:
        raise ConfigError(
            f"instruction {instruction!r} holds {PLACEHOLDER}, expected only what stands before it; pass the "
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
