"""The parts of what an attached `encode_prompt` returns, and how pipelines want them."""

from typing import Any

import torch
from torch import Tensor

from llmdiff.adapter.layout import pad_rows, real_rows

Parts = dict[str, Any]
"""What `encode_prompt` returns, by the names of `PromptContract.returns`."""

_COMPILED_TOKENS = 64


def as_list(states: Tensor | None, start: int, end: int) -> list[Tensor]:
    """Return every prompt's rows without padding; an empty list for no prompts, as ragged families have it.

    c is in the columns from `start` to `end`.
    """
    if states is None:
        return []
    real = real_rows(states[..., start:end])
    if states.shape[-1] > end:
        real = real | (states[..., -1] != 0)
    return [text[rows] for text, rows in zip(states, real, strict=True)]


def no_second_text(positive: Tensor, denoiser: Any) -> tuple[Tensor, Tensor]:
    """Return an empty text and its mask for a second text encoder (HunyuanImage's, for letters in the picture)."""
    states = positive.new_zeros(len(positive), 1, denoiser.config["text_embed_2_dim"])
    return states, states.new_zeros(len(positive), 1, dtype=torch.long)


def learned_tokens(pipe: Any) -> list[str]:
    """Return the tokens that `load_textual_inversion` has added to the pipeline's tokenizer."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if not hasattr(pipe, "load_textual_inversion") or tokenizer is None:
        return []
    special = set(tokenizer.all_special_tokens)
    return [token for token in tokenizer.get_added_vocab() if token not in special]


def pad_alike(parts: Parts, *, in_steps: bool) -> None:
    """Pad positive and negative texts to one length; with `in_steps` to the next multiple of 64 tokens."""
    # The attention layers treat zero rows as padding, so prompts can be padded to one length.
    sides = [name for name in ("positive", "negative") if parts.get(name) is not None]
    tokens = max((parts[name].shape[1] for name in sides), default=0)
    if in_steps:
        # A compiled denoiser compiles again for a text of another length.
        tokens = -(-tokens // _COMPILED_TOKENS) * _COMPILED_TOKENS
    for name in sides:
        parts[name] = pad_rows(parts[name], tokens)
