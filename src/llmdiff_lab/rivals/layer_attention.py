"""Attention across the layers of an LLM, and a learned mixture of them, as the text encoding."""

import torch
import torch.nn.functional as F
from torch import nn

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.layer_weights import AllLayers


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
