"""Convert texts to token ids. Templates may contain control tokens, users' texts may not.

A tokenizer reads "</s>" or "<|im_end|>" in a text as the token of that name, which tells the LLM that a text or a turn
ends. In a template this is intended; in a prompt these letters are plain text.
"""

import itertools
from collections.abc import Sequence
from typing import Any

# The characters that a token covers: first, and one past the last.
Span = tuple[int, int]


def template_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a trusted text; the name of a special token becomes that token."""
    if not text:
        return []
    # verbose=False: `tokenize` warns about cut prompts itself and says how much is lost.
    return [int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def plain_ids(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Return the ids of a user's text without control tokens, and the characters that each token covers.

    The list of characters is empty for tokenizers without character offsets (those that are not "fast").
    """
    if not text:
        return [], []
    ids, spans = _encoded(tokenizer, text)
    control = _control_ids(tokenizer).intersection(ids)
    if not control:
        return ids, spans
    # Slow tokenizers, and vocabularies that contain a special token's name as a word: split the text inside the name.
    names = [name for name in map(str, tokenizer.convert_ids_to_tokens(sorted(control))) if len(name) > 1]
    cuts = {0, len(text)}
    for name in names:
        start = text.find(name)
        while start >= 0:
            cuts.add(start + 1)
            start = text.find(name, start + 1)
    if len(cuts) == 2:  # the tokenizer uses a special token for ordinary text
        return ids, spans
    places = sorted(cuts)
    ids, spans = [], []
    for start, end in itertools.pairwise(places):
        some, where = _encoded(tokenizer, text[start:end])
        ids += some
        spans += [(start + first, start + last) for first, last in where]
    return ids, spans


def plain_options(tokenizer: Any, texts: Sequence[str]) -> dict[str, bool]:
    """Return tokenizer arguments that make special tokens in users' texts plain text; {} if the texts contain none.

    For calls with padding or several texts, which `plain_ids` does not support. BOS and EOS are added as usual.
    """
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # Some CLIP tokenizers pad with "!", which occurs in many prompts.
    spelled = any(name in text for name in names if len(name) > 1 for text in texts)
    return {"split_special_tokens": True} if spelled else {}


def _encoded(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    if not getattr(tokenizer, "is_fast", False):
        # split_special_tokens would also split other added tokens, which are ordinary text.
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
    if getattr(tokenizer, "is_fast", False):  # split_special_tokens covers the other special tokens
        ids = set(tokenizer.all_special_ids)
    else:
        ids = {
            place for place, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
        }
    # An unknown word is not a control token.
    return ids - {tokenizer.unk_token_id}
