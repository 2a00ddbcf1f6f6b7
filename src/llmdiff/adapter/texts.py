"""Check and encode the texts of a call, with or without prompt weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.gain_settings import check_blocks
from llmdiff.adapter.prompt_parts import Parts
from llmdiff.adapter.settings import Control
from llmdiff.errors import ConfigError, PromptError
from llmdiff.files import clean_text, is_blank
from llmdiff.language.rewording import encode_reworded
from llmdiff.language.saved_encodings import SavedEncodings
from llmdiff.language.weights import parse_weights
from llmdiff.types import TextEncoding


def prompt_texts(name: str, prompt: Any, *, may_be_blank: bool, weighted: bool) -> list[str]:
    """Return the prompts of a call as a list.

    Raises:
        PromptError: they are not strings, one is blank, or a weight is out of range.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{name} is {prompt!r}, expected a text or a list of texts")
    for index, text in enumerate(texts):
        if not may_be_blank and is_blank(plain_text(text, weighted=weighted)):
            where = name if len(texts) == 1 else f"{name}[{index}]"
            raise PromptError(
                f"{where} is blank ({text!r}), expected a description of the picture: write one"
            )
    return _clean(name, texts)


def negative_texts(negative_prompt: Any, count: int) -> list[str]:
    """Return the negative prompts of a call, one for each of its `count` prompts; "" if there is none.

    Raises:
        PromptError: they are not strings, or their number differs from that of the prompts.
    """
    if negative_prompt is None or isinstance(negative_prompt, str):
        return _clean("negative_prompt", [negative_prompt or ""]) * count
    if not isinstance(negative_prompt, list | tuple) or not all(
        isinstance(text, str) for text in negative_prompt
    ):
        raise PromptError(f"negative_prompt is {negative_prompt!r}, expected a text or a list of texts")
    texts = _clean("negative_prompt", negative_prompt)
    if len(texts) != count:
        raise PromptError(
            f"negative_prompt has {len(texts)} texts, prompt has {count}: give one for each, or a single text"
        )
    return texts


def plain_text(text: Any, *, weighted: bool) -> Any:
    """Return a text, or a list of texts, for the base's text encoder: cleaned, without weights.

    Raises:
        PromptError: a weight is out of range, or a text is not valid.
    """
    if isinstance(text, str):
        text = clean_text("prompt", text)
        return parse_weights(text).text if weighted else text
    if isinstance(text, list | tuple):
        return [plain_text(one, weighted=weighted) for one in text]
    return text


def _clean(name: str, texts: Sequence[str]) -> list[str]:
    many = len(texts) > 1
    return [clean_text(f"{name}[{i}]" if many else name, text) for i, text in enumerate(texts)]


def encode_texts(
    adapter: LLMDiffAdapter,
    llm: Any,
    texts: Sequence[str],
    control: Control,
    *,
    generator: torch.Generator | None = None,
    reword: Collection[str] | None = None,
) -> TextEncoding:
    """Return the text encoding, from the adapter's context encoding, else from `llm.encode`, as of saved encodings.

    `generator` draws noise, see `ContextEncoding.encode`. `reword` are the texts that `control.rewording` rewords;
    None: all of them.

    Raises:
        ConfigError: the control or the noise needs a context encoding that the adapter has not, or an LLM where the
            encodings are saved ones.
    """
    check_context(adapter, control)
    if isinstance(llm, SavedEncodings):
        _check_as_saved(llm, control, generator)
        return llm.encode(texts)
    how: dict[str, Any] = {
        "weighted": control.weighted,
        "generator": generator,
        "block_gains": control.block_gains,
    }
    if adapter.context is not None and control.rewording is not None:
        return encode_reworded(adapter.context, llm, texts, control.rewording, reword=reword, **how)
    if adapter.context is not None:
        return adapter.context.encode(llm, list(texts), **how)
    if generator is not None:
        raise ConfigError("noise_seed is given, but the adapter's states have no noise: leave noise_seed out")
    encoding: TextEncoding = llm.encode(list(texts))
    return encoding


def _check_as_saved(encodings: SavedEncodings, control: Control, generator: torch.Generator | None) -> None:
    """Raise a ConfigError if a call asks for something that saved encodings were not made with."""
    asked = {"rewording": control.rewording, "noise_seed": generator, "block_gains": control.block_gains}
    for name, given in asked.items():
        if given:
            raise ConfigError(
                f"{name} is given with saved encodings, which are made already: leave it out, or load the LLM"
            )
    if control.weighted != encodings.origin.weighted:
        raise ConfigError(
            f"weighted is {control.weighted}, but the encodings were saved with weighted={encodings.origin.weighted}: "
            "attach with the same, or encode the prompts again"
        )


def check_context(adapter: LLMDiffAdapter, control: Control) -> None:
    """Raise a ConfigError if the control needs a context encoding that the adapter has not, or a block it lacks."""
    if adapter.context is not None:
        check_blocks(control.block_gains or {}, adapter.context.num_blocks)
        return
    for name, given, why in (
        ("block_gains", control.block_gains, "are no sum over blocks"),
        ("weighted", control.weighted, "have no scores to weigh"),
        ("rewording", control.rewording, "come from no LLM that reads an answer"),
    ):
        if given:
            raise ConfigError(f"{name} is given, but the adapter's states {why}: leave {name} out")


def encode_parts(
    llm: Any, adapter: LLMDiffAdapter, texts: Mapping[str, list[str]], control: Control
) -> Parts:
    """Return the text states and pooled vectors of the prompts ("positive") and negative prompts ("negative").

    Shapes:
        states (B, T, W + D), one T for all; pooled (B, pooled width) or None.
    """
    distinct = list(dict.fromkeys(text for side in texts.values() for text in side))
    if not distinct:
        return {}
    # Encode every distinct text once, in one pass: negative prompts mostly repeat. They are not reworded.
    reword = frozenset(texts.get("positive", ()))
    states, pooled = adapter.condition(encode_texts(adapter, llm, distinct, control, reword=reword))
    parts: Parts = {}
    for name, side in texts.items():
        rows = [distinct.index(text) for text in side]
        parts[name] = states[rows]
        parts[f"{name}_pooled"] = None if pooled is None else pooled[rows]
    return parts


def check_second_prompts(second_prompts: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise a PromptError if an argument holds another prompt for a second text encoder."""
    for name in second_prompts:
        first = name.rpartition("_")[0]
        if given.get(name) is not None and given[name] != given.get(first):
            raise PromptError(
                f"{name} is for a second text encoder, but one LLM reads the whole prompt: write all of it in {first}"
            )
