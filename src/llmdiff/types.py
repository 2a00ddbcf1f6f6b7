"""Values passed between modules. Shape letters in all docstrings and annotations:

B prompts, T tokens (padded), D width of the LLM's states, L decoder blocks of the LLM,
W width of the text states the denoiser expects, d groups of attention layers.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BlockStates:
    """Every block's two updates of every token of a batch of prompts.

    Shapes:
        x0: (B, T, D), the input of the first block.
        context: (L, B, T, D), u_l = block_l(x_l | causal context) - x_l.
        lone: (L, B, T, D), v_l = block_l(x_l | the token alone) - x_l.
        token_mask: (B, T) bool, True = real token.
        input_ids: (B, T) int64, 0 where padded.

    Source: Dong et al. 2024 (arXiv 2502.04412), the denoising reading of decoder blocks.
    """

    x0: Float[Tensor, "B T D"]
    context: Float[Tensor, "L B T D"]
    lone: Float[Tensor, "L B T D"]
    token_mask: Bool[Tensor, "B T"]
    input_ids: Int[Tensor, "B T"]

    @property
    def scores(self) -> Float[Tensor, "L B T D"]:
        """Return s_l = u_l - v_l, (L, B, T, D): the contribution of the context in each block."""
        return self.context - self.lone


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """The text encoding c of a batch of prompts.

    Shapes:
        states: (B, T, D), or (B, T, d, D) of d groups of attention layers; rows of padding tokens are exactly 0.
        token_mask: (B, T) bool, True = real token.
    """

    states: Float[Tensor, "B T *d D"]
    token_mask: Bool[Tensor, "B T"]
