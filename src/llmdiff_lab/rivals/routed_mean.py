"""A softmax over an LLM's layers for every group of the denoiser's attention layers."""

import torch
from torch import nn

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.layer_weights import LayerWeights


class RoutedMean(LayerWeights):
    """One learned weight per block and group d of attention layers, the same for every token:

        c_d = sum_{l=1..L} softmax_l(gamma_d)_l LN(x_l)

    gamma = 0 at the start, which is the norm-average for all groups.

    Shapes: gamma (L, d).
    Source: arXiv 2602.03510, a mixture of the LLM's normalised layers for each block of the denoiser, the best of its
        controlled comparison. There the denoiser is trained from nothing and has a mixture for each block; here it is
        frozen, and groups are those of our own routing.
    """

    def __init__(
        self, llm: DecoderLLM, *, groups: int, template: str | None = None, max_length: int = 512
    ) -> None:
        super().__init__(llm, template=template, max_length=max_length)
        self.gamma = nn.Parameter(torch.zeros(llm.num_blocks, groups))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return the mixtures. Shapes: (B, T, L * D) => (B, T, d, D)."""
        layers = torch.unflatten(raw.states.to(self.gamma.device), -1, (-1, self.hidden_size))
        mixed = torch.einsum("lg,btld->btgd", self.gamma.softmax(0), layers)
        return TextEncoding(states=mixed, token_mask=raw.token_mask.to(mixed.device))
