"""Bidirectional transformer blocks over the tokens of an encoding."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmdiff.adapter.layers import heads_of, merge_heads
from llmdiff.errors import ConfigError

LAYERS = 2
"""Default number of blocks of a new adapter's refiner."""

_HEAD_WIDTH = 32
_WIDEST = 1024


def wide(hidden_size: int) -> int:
    """Return the default width of a refiner's blocks: the LLM's, at most 1,024."""
    return min(hidden_size, _WIDEST)


def narrow(hidden_size: int, text_width: int) -> int:
    """Return the smaller of the LLM's width and that of the denoiser's text states, at most 1,024.

    The width of a saved refiner whose config has none.
    """
    return min(hidden_size, text_width, _WIDEST)


class TokenRefiner(nn.Module):
    """Refine a causal encoding by bidirectional attention, so that each token also depends on later ones.

        c' = c + W_out norm(blocks(W_in c))
        per block:  x = x + Attn(norm(x));   x = x + W_2 gelu(W_1 norm(x))

    Attention is bidirectional, among real tokens only. W_out is initialised with zeros, so that c' = c at the
    start of training.

    Shapes: c (B, T, D) => (B, T, D), inside (B, T, width).

    Raises:
        ConfigError: `layers` or `width` is below 1.

    Source: ours; the form is that of the token refiners of text-to-video and text-to-image transformers, as in
        HunyuanVideo (arXiv 2412.03603).
    """

    def __init__(self, hidden_size: int, *, layers: int, width: int) -> None:
        super().__init__()
        if layers < 1 or width < 1:
            raise ConfigError(f"a refiner of {layers} layers and width {width}: expected at least 1 of both")
        self.to_inside = nn.Linear(hidden_size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_outside = nn.Linear(width, hidden_size)
        nn.init.zeros_(self.to_outside.weight)
        nn.init.zeros_(self.to_outside.bias)

    def forward(
        self, states: Float[Tensor, "B T D"], token_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return c'; its padding rows are undefined. Shapes: (B, T, D), (B, T) bool => (B, T, D)."""
        # A prompt without tokens attends to its padding rows: a softmax over nothing would be NaN.
        seen = (token_mask | ~token_mask.any(dim=1, keepdim=True))[:, None, None]
        inside = self.to_inside(states)
        for block in self.blocks:
            inside = block(inside, seen)
        result: Tensor = states + self.to_outside(self.norm(inside))
        return result


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max((n for n in range(1, width // _HEAD_WIDTH + 1) if width % n == 0), default=1)
        self.norm_attn, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Float[Tensor, "B T width"], seen: Bool[Tensor, "B 1 1 T"]
    ) -> Float[Tensor, "B T width"]:
        y = self.norm_attn(x)
        query, key, value = (
            heads_of(project(y), self.heads) for project in (self.to_q, self.to_k, self.to_v)
        )
        x = x + self.to_out(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=seen)))
        result: Tensor = x + self.narrow(F.gelu(self.widen(self.norm_mlp(x))))
        return result
