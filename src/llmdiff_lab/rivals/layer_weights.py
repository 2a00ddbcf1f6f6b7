"""All of an LLM's layers as one reading, and a learned mixture of them as the text encoding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import layer_normed, read_blocks
from llmdiff_lab.rivals.learned_source import LearnedSource


class AllLayers(LearnedSource):
    """The normalised outputs of all blocks of a frozen LLM; subclasses combine them."""

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        super().__init__()
        self.llm = llm
        self.id = llm.id
        self.hidden_size = llm.hidden_size
        self.template = template
        self.max_length = max_length

    def calibrate(self, prompts: Sequence[str]) -> None:
        """Do nothing: every layer is normalised per token."""

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return all blocks' normalised outputs side by side. Shapes: (B, T, L * D), (B, T)."""
        layers: list[Tensor] = []
        mask = read_blocks(
            self.llm,
            prompts,
            lambda index, x, u: layers.append(x + u),
            template=self.template,
            max_length=self.max_length,
        )
        return TextEncoding(states=torch.cat([layer_normed(x) for x in layers], dim=-1), token_mask=mask)


class LayerWeights(AllLayers):
    """One learned weight per block, the same for every token:

        c = sum_{l=1..L} softmax(gamma)_l LN(x_l)

    gamma = 0 at the start, which is the norm-average.

    Shapes: gamma (L,).
    Source: Peters et al. 2018 (arXiv 1802.05365), equation 1 with layer normalisation; its scale is left out,
        because the adapter normalises c.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        super().__init__(llm, template=template, max_length=max_length)
        self.gamma = nn.Parameter(torch.zeros(llm.num_blocks))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return the mixture. Shapes: (B, T, L * D) => (B, T, D)."""
        layers = torch.unflatten(raw.states.to(self.gamma.device), -1, (-1, self.hidden_size))
        mixed = torch.einsum("l,btld->btd", self.gamma.softmax(0), layers)
        return TextEncoding(states=mixed, token_mask=raw.token_mask.to(mixed.device))
