"""From prompts to token ids: BOS, templates, cutting, padding."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmdiff.errors import ConfigError, PromptError, UnsupportedLLMError

PLACEHOLDER = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """The tokens of a batch of prompts, split into what is kept, what is context and what never changes.

    An LLM reads, per prompt: prefix_ids + context_ids[b] + the kept tokens of row b without their BOS (which
    is the prefix's BOS).

    Shapes:
        input_ids: (B, T) int64, the kept tokens, BOS first; 0 where padded. Either side may be padded.
        token_mask: (B, T) bool, True = real token.
        prefix_ids: BOS and the template's constant text, the same for every prompt. context_ids: B tuples, a
        template's first `{prompt}` and what stands between it and the last one; seen by
            the kept tokens, not kept.
    """

    input_ids: Tensor
    token_mask: Tensor
    prefix_ids: tuple[int, ...]
    context_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The constant texts around a prompt: before the first `{prompt}`, between the two, after the last.

    `between` is None where the template holds `{prompt}` once.
    """

    before: str = ""
    between: str | None = None
    after: str = ""

    @classmethod
    def parse(cls, template: str | None) -> "PromptTemplate":
        """Returns the parts of a template; other braces in it are plain text.

        Raises:
            ConfigError: the template does not hold `{prompt}` once or twice.
        """
        if template is None:
            return cls()
        parts = template.split(PLACEHOLDER)
        if len(parts) == 2:
            return cls(before=parts[0], after=parts[1])
        if len(parts) == 3:
            return cls(before=parts[0], between=parts[1], after=parts[2])
        raise ConfigError(
            f"template {template!r} holds {PLACEHOLDER} {len(parts) - 1} times, expected once or twice; "
            f'write for example "Picture: {PLACEHOLDER}"'
        )


def first_token_id(tokenizer: Any) -> int:
    """Returns the id of the token that every text starts with: BOS, or EOS where that serves as BOS (GPT-2).

    Raises:
        UnsupportedLLMError: the tokenizer knows neither.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise UnsupportedLLMError(
        f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has neither a BOS nor an EOS token, and "
        "every text needs a first token; set tokenizer.bos_token"
    )


def checked_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Returns the prompts as a list.

    Raises:
        PromptError: there are none, or one is not a string.
    """
    rows = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(rows, Sequence) or isinstance(rows, bytes):
        raise PromptError(f"prompts is a {type(prompts).__name__}, expected a string or a list of strings")
    if len(rows) == 0:
        raise PromptError("prompts is empty, expected at least one string")
    for i, prompt in enumerate(rows):
        if not isinstance(prompt, str):
            raise PromptError(f"prompts[{i}] is a {type(prompt).__name__}, expected a string")
    return list(rows)


def tokenize(
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    template: str | None,
    max_length: int,
    max_positions: int | None,
) -> PromptTokens:
    """Returns the tokens of the prompts inside the template, padded on the right.

    Every piece of text is tokenised by itself, so that the constant part has the same tokens for every
    prompt. Blanks at a piece's end go to the prompt behind it: tokenizers join a word with the blank before
    it.

    Shapes:
        result.input_ids: (B, T), T = the longest row, at least 1 (BOS).
    Raises:
        PromptError: no prompts, or one that is not a string.
        ConfigError: a template without `{prompt}`, max_length below 1, or a template too long for the LLM.
    """
    rows = checked_prompts(prompts)
    if max_length < 1:
        raise ConfigError(f"max_length is {max_length}, expected at least 1 token")
    parts = PromptTemplate.parse(template)
    bos = first_token_id(tokenizer)

    before_ids, before_blank = _constant_ids(tokenizer, parts.before)
    between_ids, between_blank = _constant_ids(tokenizer, parts.between or "")
    after_ids = _ids(tokenizer, parts.after)
    # A chat template may spell BOS out itself; a second one would be a token of its own.
    prefix = before_ids if before_ids[:1] == [bos] else [bos, *before_ids]

    uses = 1 if parts.between is None else 2
    limit = max_length
    if max_positions is not None:
        limit = min(limit, (max_positions - len(prefix) - len(between_ids) - len(after_ids)) // uses)
        if limit < 1:
            raise ConfigError(
                f"template leaves no room for a prompt in the LLM's {max_positions} positions; shorten it"
            )

    context: list[tuple[int, ...]] = []
    kept: list[list[int]] = []
    for i, prompt in enumerate(rows):
        first = _cut(_ids(tokenizer, before_blank + prompt), limit, row=i)
        if parts.between is None:
            context.append(())
            kept.append([bos, *first, *after_ids])
        else:
            # The first use has warned already.
            again = _ids(tokenizer, between_blank + prompt)[:limit]
            context.append((*first, *between_ids))
            kept.append([bos, *again, *after_ids])

    width = max(len(ids) for ids in kept)
    input_ids = torch.zeros(len(kept), width, dtype=torch.int64)
    token_mask = torch.zeros(len(kept), width, dtype=torch.bool)
    for b, ids in enumerate(kept):
        input_ids[b, : len(ids)] = torch.tensor(ids)
        token_mask[b, : len(ids)] = True
    return PromptTokens(
        input_ids=input_ids, token_mask=token_mask, prefix_ids=tuple(prefix), context_ids=tuple(context)
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    if not text:
        return []
    # verbose=False: cutting has a warning of its own that says how much is lost.
    return [int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _constant_ids(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """Returns the ids of a constant piece and the trailing blank that belongs to the prompt behind it."""
    stripped = text.rstrip(" ")
    blank = text[len(stripped) :]
    if blank and _marks_word_starts(tokenizer):
        blank = blank[1:]
    return _ids(tokenizer, stripped), blank


def _marks_word_starts(tokenizer: Any) -> bool:
    """Returns whether the tokenizer (SentencePiece) puts a blank before every text by itself."""
    tokens = tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a"))
    return bool(tokens) and str(tokens[0]).startswith("\u2581")


def _cut(ids: list[int], limit: int, *, row: int) -> list[int]:
    if len(ids) > limit:
        warnings.warn(
            f"prompts[{row}] has {len(ids)} tokens: the last {len(ids) - limit} were cut, the first {limit} "
            "kept; shorten the prompt or raise max_length",
            stacklevel=4,
        )
    return ids[:limit]
