"""Texts to token ids: a user's text never becomes a control token, a template's may.

A tokenizer reads "</s>" or "<|im_end|>" in a text as the token of that name, which tells the LLM that a text or a turn
ends. Templates are trusted and mean it; a prompt that spells one out is about those letters.
"""

import itertools
from collections.abc import Sequence
from typing import Any

# What a token stands for: its characters from the first to before the second.
Span = tuple[int, int]


def template_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a trusted text, in which a special token's name is that token."""
    if not text:
        return []
    # verbose=False: cutting has a warning of its own that says how much is lost.
    return [int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def plain_ids(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Return the ids of a user's text, with no control token among them, and each token's characters.

    The characters are empty where a tokenizer does not tell them (those that are not "fast").
    """
    if not text:
        return [], []
    ids, spans = _encoded(tokenizer, text)
    control = _control_ids(tokenizer).intersection(ids)
    if not control:
        return ids, spans
    # Slow tokenizers, and vocabularies that hold a special token's name as a word, too: cut the name in two.
    names = [name for name in map(str, tokenizer.convert_ids_to_tokens(sorted(control))) if len(name) > 1]
    cuts = {0, len(text)}
    for name in names:
        start = text.find(name)
        while start >= 0:
            cuts.add(start + 1)
            start = text.find(name, start + 1)
    if len(cuts) == 2:  # not by its name: a tokenizer that uses a special token for ordinary text
        return ids, spans
    places = sorted(cuts)
    ids, spans = [], []
    for start, end in itertools.pairwise(places):
        some, where = _encoded(tokenizer, text[start:end])
        ids += some
        spans += [(start + first, start + last) for first, last in where]
    return ids, spans


def plain_options(tokenizer: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Return what to call a tokenizer with, so that special tokens in users' texts are plain text; {} if none has any.

    For calls with padding or several texts, where `plain_ids` does not fit. BOS and EOS are added as always.
    """
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # Some CLIPs pad with "!", which is a word of many prompts.
    spelled = any(name in text for name in names if len(name) > 1 for text in texts)
    return {"split_special_tokens": True} if spelled else {}


def _encoded(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    if not getattr(tokenizer, "is_fast", False):
        # Not asked to split special tokens: it would split other added tokens, of ordinary texts, as well.
        return template_ids(tokenizer, text), []
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        verbose=False,
        return_offsets_mapping=True,
        split_special_tokens=True,
    )
    return [int(i) for i in encoded["input_ids"]], [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


def _control_ids(tokenizer: Any) -> set[int]:
    if getattr(tokenizer, "is_fast", False):  # they know the others, by the hundred, by themselves
        ids = set(tokenizer.all_special_ids)
    else:
        ids = {
            place for place, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
        }
    # A word that a tokenizer does not know is no control token.
    return ids - {tokenizer.unk_token_id}
