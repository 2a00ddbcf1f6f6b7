"""Check and encode the texts of a call, with or without prompt weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.contract import Part
from llmdiff.adapter.gain_settings import check_blocks
from llmdiff.adapter.prompt_parts import Parts
from llmdiff.errors import ConfigError, PromptError
from llmdiff.files import clean_text, is_blank
from llmdiff.language.rewording import Rewording, encode_reworded
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
    *,
    weighted: bool = False,
    generator: torch.Generator | None = None,
    rewording: Rewording | None = None,
    reword: Collection[str] | None = None,
    block_gains: Mapping[int, float] | None = None,
) -> TextEncoding:
    """Return the text encoding, from the adapter's context encoding, else from `llm.encode`, as of saved encodings.

    `weighted`, `generator` and `block_gains` are those of `ContextEncoding.encode`. With `rewording`, a closed LLM
    rewords the texts, or those in `reword`.

    Raises:
        ConfigError: `weighted`, `rewording`, `generator` or `block_gains` is given for an adapter without a context
            encoding, or the LLM has no such block.
    """
    check_context(adapter, weighted=weighted, rewording=rewording, block_gains=block_gains)
    how: dict[str, Any] = {"weighted": weighted, "generator": generator, "block_gains": block_gains}
    if isinstance(llm, SavedEncodings):
        _check_as_saved(llm, rewording=rewording, **how)
        return llm.encode(texts)
    if adapter.context is not None and rewording is not None:
        return encode_reworded(adapter.context, llm, texts, rewording, reword=reword, **how)
    if adapter.context is not None:
        return adapter.context.encode(llm, list(texts), **how)
    if generator is not None:
        raise ConfigError("noise_seed is given, but the adapter's states have no noise: leave noise_seed out")
    encoding: TextEncoding = llm.encode(list(texts))
    return encoding


def _check_as_saved(
    encodings: SavedEncodings,
    *,
    weighted: bool,
    generator: torch.Generator | None,
    rewording: Rewording | None,
    block_gains: Mapping[int, float] | None,
) -> None:
    """Check that a call asks for nothing that saved encodings were not made with.

    Raises:
        ConfigError: it does.
    """
    for name, given in (("rewording", rewording), ("noise_seed", generator), ("block_gains", block_gains)):
        if given:
            raise ConfigError(
                f"{name} is given with saved encodings, which are made already: leave it out, or load the LLM"
            )
    if weighted != encodings.origin.weighted:
        raise ConfigError(
            f"weighted is {weighted}, but the encodings were saved with weighted={encodings.origin.weighted}: attach "
            "with the same, or encode the prompts again"
        )


def check_context(
    adapter: LLMDiffAdapter,
    *,
    weighted: bool,
    rewording: Rewording | None,
    block_gains: Mapping[int, float] | None = None,
) -> None:
    """Check that the adapter has a context encoding if one is needed.

    Raises:
        ConfigError: it has none, so there are no scores to weigh and no LLM that reads an answer; or the LLM lacks a
            block.
    """
    if block_gains and adapter.context is None:
        raise ConfigError(
            "block_gains is given, but the adapter's states are no sum over blocks: leave it out"
        )
    if adapter.context is not None:
        check_blocks(block_gains or {}, adapter.context.num_blocks)
    if weighted and adapter.context is None:
        raise ConfigError(
            "weighted is True, but the adapter's states have no scores to weigh: leave weighted out"
        )
    if rewording is not None and adapter.context is None:
        raise ConfigError(
            "rewording is given, but the adapter's states come from no LLM that reads an answer: leave it out"
        )


def encode_parts(
    llm: Any,
    adapter: LLMDiffAdapter,
    positive: list[str] | None,
    negative: list[str] | None,
    *,
    weighted: bool,
    rewording: Rewording | None = None,
    block_gains: Mapping[int, float] | None = None,
) -> Parts:
    """Return the text states and pooled vectors of prompts and negative prompts; None: there are none.

    Shapes:
        states (B, T, W + D), one T for all; pooled (B, pooled width) or None.
    """
    texts = list(dict.fromkeys([*(positive or []), *(negative or [])]))
    if not texts:
        return {}
    # Encode every distinct text once, in one pass: negative prompts mostly repeat. Negative prompts are not
    # reworded.
    encoding = encode_texts(
        adapter,
        llm,
        texts,
        weighted=weighted,
        rewording=rewording,
        reword=frozenset(positive or ()),
        block_gains=block_gains,
    )
    states, pooled = adapter.condition(encoding)
    parts: Parts = {}
    sides: tuple[tuple[Part, Part, list[str] | None], ...] = (
        ("positive", "positive_pooled", positive),
        ("negative", "negative_pooled", negative),
    )
    for name, pooled_name, wanted in sides:
        if wanted is not None:
            rows = [texts.index(text) for text in wanted]
            parts[name] = states[rows]
            parts[pooled_name] = None if pooled is None else pooled[rows]
    return parts


def check_second_prompts(second_prompts: Sequence[str], given: Mapping[str, Any]) -> None:
    """Check that no argument holds another prompt for a second text encoder.

    Raises:
        PromptError: one does.
    """
    for name in second_prompts:
        first = name.rpartition("_")[0]
        if given.get(name) is not None and given[name] != given.get(first):
            raise PromptError(
                f"{name} is for a second text encoder, but one LLM reads the whole prompt: write all of it in {first}"
            )
