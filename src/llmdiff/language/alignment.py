"""Align the tokens of two LLMs by the characters of the prompt that they cover."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmdiff.errors import UnsupportedLLMError
from llmdiff.language.control_tokens import Span, plain_ids, template_ids
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.tokens import PromptTemplate, checked_prompts, constant_ids

_BOS: Span = (0, 1)


def token_spans(
    llm: DecoderLLM, prompts: Sequence[str], *, template: str | None, max_length: int
) -> list[list[Span]]:
    """Return the range of characters that every kept token of `DecoderLLM.tokenize` covers.

    Characters are counted from 1: BOS covers a character 0 before the prompt, and the template's text after the
    prompt follows its last character.

    Raises:
        PromptError, ConfigError: see `tokenize`.
        UnsupportedLLMError: the LLM's tokenizer gives no character offsets.
    """
    tokenizer = llm.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedLLMError(
            f"llm {llm.id!r} has the tokenizer {type(tokenizer).__name__}, which does not say which characters a token "
            "stands for: use the LLM's fast tokenizer"
        )
    parts = PromptTemplate.parse(template)
    constant = parts.before if parts.between is None else parts.between
    _, blank = constant_ids(tokenizer, constant)
    after = _offsets(llm, parts.after)
    kept = llm.tokenize(prompts, template=template, max_length=max_length).token_mask.sum(1).tolist()
    spans: list[list[Span]] = []
    for text, count in zip(checked_prompts(prompts), kept, strict=True):
        own = plain_ids(tokenizer, blank + text)[1][: count - 1 - len(after)]
        shift, end = 1 - len(blank), 1 + len(text)
        spans.append(
            [
                _BOS,
                *((max(1, start + shift), max(1, stop + shift)) for start, stop in own),
                *((end + start, end + stop) for start, stop in after),
            ]
        )
    return spans


def shared_characters(text: str, spans: Sequence[Span], others: Sequence[Span]) -> Tensor:
    """Return the weight of each token of `others` for each token of `spans`: its share of the common characters.

        weight_ij = |characters in both i and j| / sum over k of |characters in both i and k|

    Blanks count only for tokens of blanks alone, because tokenizers attach blanks to different words. A token that
    shares no character with any other has a row of zeros, for example where one LLM cuts the prompt earlier.

    Shapes: (len(spans), len(others)).
    """
    rows, columns = (torch.tensor(some).reshape(-1, 2) for some in (spans, others))
    first = torch.maximum(rows[:, None, 0], columns[None, :, 0])
    last = torch.maximum(torch.minimum(rows[:, None, 1], columns[None, :, 1]), first)
    blank = [False, *(letter.isspace() for letter in text)]
    end = int(torch.cat([rows, columns]).max())
    visible = torch.tensor([*(not one for one in blank[:end]), *[True] * (end - len(blank))])
    before = torch.cat([torch.zeros(1, dtype=torch.int64), visible.long().cumsum(0)])
    shared = (before[last] - before[first]).double()
    shared = torch.where(shared.sum(1, keepdim=True) > 0, shared, (last - first).double())
    return shared / shared.sum(1, keepdim=True).clamp(min=1)


def _offsets(llm: DecoderLLM, text: str) -> list[Span]:
    """Return the character range of each token of `template_ids`."""
    if not text:
        return []
    encoded = llm.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    assert list(encoded["input_ids"]) == template_ids(llm.tokenizer, text)
    return [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]
