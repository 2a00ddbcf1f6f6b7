"""The base pipeline's own text encoder as a source of states: our adapter without an LLM."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmdiff.language.control_tokens import plain_options
from llmdiff.types import TextEncoding


def padded_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return the ids that a pipeline's text encoder reads, padded to its full length. Shapes: (B, S)."""
    options = plain_options(tokenizer, prompts)
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt", **options
    ).input_ids
    return ids


class BaseTextStates:
    """The last hidden states of a pipeline's text encoder, up to and including its end token.

    Source: Rombach et al. 2022, Stable Diffusion's conditioning; there, padding is read as well.
    """

    num_blocks = 0

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.id = "base-text-encoder"
        self.hidden_size = int(text_encoder.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, W), (B, T); padding rows are 0."""
        ids = padded_ids(self.tokenizer, prompts).to(self.text_encoder.device)
        states = self.text_encoder(ids).last_hidden_state.float()
        # The padding token is the end token. Tokens up to and including the first one are real.
        ends = (ids == self.tokenizer.eos_token_id).int()
        mask = ends.cumsum(1) - ends == 0
        length = int(mask.sum(1).max())
        mask = mask[:, :length]
        return TextEncoding(states=states[:, :length].masked_fill(~mask[..., None], 0), token_mask=mask)
