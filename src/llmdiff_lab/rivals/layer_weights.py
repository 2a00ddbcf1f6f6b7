"""All of an LLM's layers as one reading, and learned mixtures of them as the text encoding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    """One learned weight per block, the same for every token; with `groups`, one for each group d of attention layers:

        c = sum_{l=1..L} softmax(gamma)_l LN(x_l)          c_d = sum_{l=1..L} softmax_l(gamma_d)_l LN(x_l)

    gamma = 0 at the start, which is the norm-average.

    Shapes: gamma (L,), or (L, d).
    Source: Peters et al. 2018 (arXiv 1802.05365), equation 1 with layer normalisation; its scale is left out,
        because the adapter normalises c. Groups: arXiv 2602.03510, a mixture of the LLM's normalised layers for each
        block of the denoiser, the best of its controlled comparison. There the denoiser is trained from nothing and has
        a mixture for each block; here it is frozen, and groups are those of our own routing.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, groups: int | None = None) -> None:
        super().__init__(llm, template=template)
        self.gamma = nn.Parameter(torch.zeros(llm.num_blocks, *([] if groups is None else [groups])))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return the mixture. Shapes: (B, T, L * D) => (B, T, D), or (B, T, d, D)."""
        layers = torch.unflatten(raw.states.to(self.gamma.device), -1, (-1, self.hidden_size))
        mixed = torch.einsum("l...,btld->bt...d", self.gamma.softmax(0), layers)
        return TextEncoding(states=mixed, token_mask=raw.token_mask.to(mixed.device))


class LayerAttention(AllLayers):
    """The layers of a token attend to each other; a learned mixture of them is the token's state:

        y = x + W_o Attn(W_q LN(x), W_k LN(x), W_v LN(x))      over the L layers x of one token
        c = sum_l w_l y_l

    w starts as the mean over layers and may become negative. W_o starts at 0, so that the start is the norm-average.

    Shapes: x (B, T, L, D), w (L,) => (B, T, D).
    Source: UniFusion (arXiv 2510.12789), attention over the layer axis before an aggregation by a linear layer; Krea 2
        (krea-ai/krea-2), whose learned mixture of layers is signed. One attention block here, in the width of the LLM;
        LN before it is ours. The token refiner behind it is the one of our adapter.
    """

    learns_in_every_step = True

    def __init__(self, llm: DecoderLLM, *, heads: int = 8, template: str | None = None) -> None:
        super().__init__(llm, template=template)
        width = llm.hidden_size
        self.heads = next(count for count in range(heads, 0, -1) if width % count == 0)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        self.mixture = nn.Parameter(torch.full((llm.num_blocks,), 1 / llm.num_blocks))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return c. Shapes: (B, T, L * D) => (B, T, D); padding rows are 0."""
        device = self.mixture.device
        mask = raw.token_mask.to(device)
        layers = torch.unflatten(raw.states.to(device), -1, (-1, self.hidden_size))[mask]  # (N, L, D)
        query, key, value = (
            torch.unflatten(project(layers), -1, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        layers = layers + self.to_out(mixed)
        c = torch.einsum("l,nld->nd", self.mixture, layers)
        states = c.new_zeros(*mask.shape, self.hidden_size).masked_scatter(mask[..., None], c)
        return TextEncoding(states=states, token_mask=mask)


class Registers(AllLayers):
    """All layers of a token through one linear layer, and learned rows up to a fixed length:

        c_t = W [LN(x_1) ; ... ; LN(x_L)]_t      for the tokens t of the text
        c_t = r_{t mod R}                        for all others

    The text is padded with registers to a multiple of R rows, and every row is read. Registers can store information
    that belongs to no word.

    Shapes: x (B, T, L * D) => (B, R * ceil(T / R), D); r (R, D).
    Source: LTX-2 (Lightricks/LTX-2), whose text connector flattens all layers of Gemma 3 into one linear layer and puts
        learned registers (128) instead of padding before bidirectional blocks, which here are our adapter's refiner.
    """

    learns_in_every_step = True

    def __init__(self, llm: DecoderLLM, *, registers: int = 32, template: str | None = None) -> None:
        super().__init__(llm, template=template)
        self.project = nn.Linear(llm.num_blocks * llm.hidden_size, llm.hidden_size, bias=False)
        self.registers = nn.Parameter(torch.randn(registers, llm.hidden_size))

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return c; every row is real. Shapes: (B, T, L * D) => (B, R * ceil(T / R), D)."""
        mask = raw.token_mask.to(self.registers.device)
        count, tokens = len(self.registers), mask.shape[1]
        filling = self.registers.repeat(-(-tokens // count), 1)
        states = self.project(raw.states.to(self.registers.device))
        text = torch.where(mask[..., None], states, filling[:tokens])
        rest = filling[tokens:].expand(len(text), -1, -1)
        c = torch.cat([text, rest], dim=1)
        return TextEncoding(states=c, token_mask=torch.ones(c.shape[:2], dtype=torch.bool, device=c.device))
