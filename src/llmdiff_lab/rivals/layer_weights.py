"""All of an LLM's layers as one reading, and learned mixtures of them as the text encoding."""

from collections.abc import Sequence

import torch
from torch import nn

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates
from llmdiff_lab.rivals.learned_source import LearnedSource


class AllLayers(LearnedSource):
    """The normalised outputs of all blocks of a frozen LLM; subclasses combine them."""

    def __init__(self, llm: DecoderLLM, *, template: str | None = None) -> None:
        super().__init__()
        self.id, self.hidden_size, self.layer_count = llm.id, llm.hidden_size, llm.num_blocks
        self._source = LLMStates(llm, template=template)

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return all blocks' normalised outputs side by side. Shapes: (B, T, L * D), (B, T)."""
        return self._source.normed_outputs(range(self.layer_count), prompts)


class LayerWeights(AllLayers):
    """One learned weight per block, the same for every token:

        c = sum_{l=1..L} softmax(gamma)_l LN(x_l)

    gamma = 0 at the start, which is the norm-average.

    Shapes: gamma (L,); with `groups`, (L, d), see `RoutedMean`.
    Source: Peters et al. 2018 (arXiv 1802.05365), equation 1 with layer normalisation; its scale is left out,
        because the adapter normalises c.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, groups: int | None = None) -> None:
        super().__init__(llm, template=template)
        self.gamma = nn.Parameter(torch.zeros(llm.num_blocks, *([] if groups is None else [groups])))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return the mixture. Shapes: (B, T, L * D) => (B, T, D), or (B, T, d, D)."""
        layers = torch.unflatten(raw.states.to(self.gamma.device), -1, (-1, self.hidden_size))
        mixed = torch.einsum("l...,btld->bt...d", self.gamma.softmax(0), layers)
        return TextEncoding(states=mixed, token_mask=raw.token_mask.to(mixed.device))
