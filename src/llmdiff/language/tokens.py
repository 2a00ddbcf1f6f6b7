"""Convert prompts to token ids: BOS, templates, weights, truncation, padding."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError, PromptError, UnsupportedLLMError
from llmdiff.files import clean_text
from llmdiff.language.control_tokens import plain_ids, template_ids
from llmdiff.language.weights import WeightedText, parse_weights

PLACEHOLDER = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """The tokens of a batch of prompts, split into kept tokens, context and constant prefix.

    For each prompt the LLM reads prefix_ids + context_ids[b] + the kept tokens of row b without BOS (the prefix
    starts with BOS).

    Shapes:
        input_ids: (B, T) int64, the kept tokens, BOS first; 0 for padding, which may be on either side.
        token_mask: (B, T) bool, True = real token.
        prefix_ids: BOS and the template's constant text, the same for every prompt.
        context_ids: B tuples, a template's first `{prompt}` and the text between it and the last one. The kept
            tokens attend to them, but they are not kept.
        weights: (B, T) float32, prompt weight of each token, 1 for BOS, templates and padding; None if every
            weight is 1.
    """

    input_ids: Tensor
    token_mask: Tensor
    prefix_ids: tuple[int, ...]
    context_ids: tuple[tuple[int, ...], ...]
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The constant texts around a prompt: before the first `{prompt}`, between the two, after the last.

    `between` is None if the template contains `{prompt}` once.
    """

    before: str = ""
    between: str | None = None
    after: str = ""

    @classmethod
    def parse(cls, template: str | None) -> "PromptTemplate":
        """Return the parts of a template; other braces in it are plain text.

        Raises:
            ConfigError: the template does not contain `{prompt}` once or twice.
        """
        if template is None:
            return cls()
        before, *more = template.split(PLACEHOLDER)
        if len(more) not in (1, 2):
            raise ConfigError(
                f"template {short(template)} contains {PLACEHOLDER} {len(more)} times, expected once or twice; "
                f'write for example "Picture: {PLACEHOLDER}"'
            )
        return cls(before=before, between=more[0] if len(more) == 2 else None, after=more[-1])


def checked_template(template: str) -> str:
    """Return the template; raise a ConfigError unless it contains `{prompt}` once or twice."""
    PromptTemplate.parse(template)
    return template


def first_token_id(tokenizer: Any) -> int:
    """Return the id of the first token of every text: BOS, or EOS if the tokenizer has no BOS (GPT-2).

    Raises:
        UnsupportedLLMError: the tokenizer has neither.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise UnsupportedLLMError(
        f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has neither a BOS nor an EOS token, and "
        "every text needs a first token; set tokenizer.bos_token"
    )


def checked_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Return the prompts as a list, each normalised by `clean_text`.

    Raises:
        PromptError: there are no prompts, or one is not a string or not valid text.
    """
    rows = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(rows, Sequence) or isinstance(rows, bytes):
        raise PromptError(f"prompts is a {type(prompts).__name__}, expected a string or a list of strings")
    if len(rows) == 0:
        raise PromptError("prompts is empty, expected at least one string")
    for i, prompt in enumerate(rows):
        if not isinstance(prompt, str):
            raise PromptError(f"prompts[{i}] is a {type(prompt).__name__}, expected a string")
    return [clean_text(f"prompts[{i}]", prompt) for i, prompt in enumerate(rows)]


def tokenize(
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    template: str | None,
    max_length: int,
    max_positions: int | None,
    weighted: bool = False,
    contexts: Sequence[str] | None = None,
) -> PromptTokens:
    """Return the tokens of the prompts inside the template, see `DecoderLLM.tokenize`.

    The name of a special token ("</s>") is plain text in a prompt and that token in the template. A context is put on
    a separate line before its prompt. Each piece of text is tokenised separately, so that the constant part has the
    same tokens for every prompt. Blanks at the end of a piece are moved to the prompt after it, because tokenizers
    join a word with the blank before it.
    """
    rows = checked_prompts(prompts)
    if max_length < 1:
        raise ConfigError(f"max_length is {max_length}, expected at least 1 token")
    parts = PromptTemplate.parse(template)
    bos = first_token_id(tokenizer)

    before_ids, before_blank = constant_ids(tokenizer, parts.before)
    between_ids, between_blank = constant_ids(tokenizer, parts.between or "")
    after_ids = template_ids(tokenizer, parts.after)
    # A chat template may contain BOS already.
    prefix = before_ids if before_ids[:1] == [bos] else [bos, *before_ids]

    if contexts is not None:
        contexts = checked_prompts(contexts)
        if len(contexts) != len(rows):
            raise PromptError(
                f"contexts are {len(contexts)}, expected one for each of the {len(rows)} prompts"
            )

    # A context may take as many tokens as a prompt.
    uses = (1 if parts.between is None else 2) + (contexts is not None)
    limit = max_length
    if max_positions is not None:
        limit = min(limit, (max_positions - len(prefix) - len(between_ids) - len(after_ids)) // uses)
        if limit < 1:
            raise ConfigError(
                f"template leaves no room for a prompt in the LLM's {max_positions} positions; shorten it"
            )

    context: list[tuple[int, ...]] = []
    kept: list[list[int]] = []
    weights: list[Tensor] = []
    everything: list[list[int]] = []
    for i, prompt in enumerate(rows):
        text = parse_weights(prompt) if weighted else WeightedText.plain(prompt)
        own_ids, own_weights = _weighted_ids(tokenizer, before_blank, text)
        everything.append(own_ids)
        own_ids = _cut(own_ids, limit, row=i)
        seen_ids = () if contexts is None else _context_ids(tokenizer, before_blank, contexts[i], limit)
        if parts.between is None:
            context.append(seen_ids)
        else:
            context.append((*seen_ids, *own_ids, *between_ids))
            # `_cut` has warned already.
            own_ids, own_weights = _weighted_ids(tokenizer, between_blank, text)
            own_ids = own_ids[:limit]
        kept.append([bos, *own_ids, *after_ids])
        weights.append(torch.tensor([1.0, *own_weights[:limit], *[1.0] * len(after_ids)]))

    _warn_of_unknown(tokenizer, everything)

    input_ids = pad_sequence([torch.tensor(ids) for ids in kept], batch_first=True)
    lengths = torch.tensor([len(ids) for ids in kept])
    token_weights = pad_sequence(weights, batch_first=True, padding_value=1.0)
    return PromptTokens(
        input_ids=input_ids,
        token_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        prefix_ids=tuple(prefix),
        context_ids=tuple(context),
        weights=None if bool((token_weights == 1).all()) else token_weights,
    )


def _context_ids(tokenizer: Any, blank: str, text: str, limit: int) -> tuple[int, ...]:
    if not text.strip():
        return ()
    ids, _ = plain_ids(tokenizer, f"{blank}{text.strip()}\n")
    return tuple(ids[:limit])


def _weighted_ids(tokenizer: Any, blank: str, text: WeightedText) -> tuple[list[int], list[float]]:
    """Return the ids of blank + text, and the weight of every token."""
    weighted = any(weight != 1 for weight in text.weights)
    if weighted and not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"{type(tokenizer).__name__} does not say which characters a token covers, and prompt weights "
            "need that; use the LLM's fast tokenizer, or prompts without weights"
        )
    ids, spans = plain_ids(tokenizer, blank + text.text)
    if not weighted:
        return ids, [1.0] * len(ids)
    # The blank belongs to the template and has no weight.
    shift = len(blank)
    return ids, [text.of_span(max(start - shift, 0), max(end - shift, 0)) for start, end in spans]


def _warn_of_unknown(tokenizer: Any, rows: list[list[int]]) -> None:
    """Warn about words that are unknown to the tokenizer; byte-level tokenizers have none."""
    unknown = tokenizer.unk_token_id
    # GPT-2 and similar tokenizers define EOS as unknown token but never use it as such.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    found = [i for i, ids in enumerate(rows) if unknown in ids]
    if found:
        first = found[0]
        more = f" (as have {len(found) - 1} other prompts)" if len(found) > 1 else ""
        warnings.warn(
            f"prompts[{first}] has {rows[first].count(unknown)} of {len(rows[first])} tokens that the LLM's "
            f"tokenizer does not know{more}: the LLM cannot read them; use words or a script that it knows, "
            "or another LLM",
            stacklevel=4,
        )


def constant_ids(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """Return the ids of a constant piece of text, and its trailing blank, which is moved to the prompt after it."""
    stripped = text.rstrip(" ")
    blank = text[len(stripped) :]
    if blank and _marks_word_starts(tokenizer):
        blank = blank[1:]
    return template_ids(tokenizer, stripped), blank


def _marks_word_starts(tokenizer: Any) -> bool:
    """Return whether the tokenizer (SentencePiece) adds a blank before every text."""
    tokens = tokenizer.convert_ids_to_tokens(template_ids(tokenizer, "a"))
    return bool(tokens) and str(tokens[0]).startswith("\u2581")


def _cut(ids: list[int], limit: int, *, row: int) -> list[int]:
    if len(ids) > limit:
        warnings.warn(
            f"prompts[{row}] has {len(ids)} tokens: the last {len(ids) - limit} were cut, the first {limit} "
            "are used; shorten the prompt or raise max_length",
            stacklevel=4,
        )
    return ids[:limit]
