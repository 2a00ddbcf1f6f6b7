"""An encoder's blocks as denoising steps: x_0 plus a learned sum of its block updates."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.update_sum import UpdateSum


class BlockPosterior(UpdateSum):
    """c = x_0 + sum_l g_l u_l,   u_l = block_l(x_l | whole text) - x_l

    A block of an encoder (T5's or an encoder-only model's) reads the whole text at once. Its output is the posterior
    p(x^{t-1} | x^t) of all tokens together, so there is no separate left context and nothing to subtract.

    Source: Dong et al. 2024 (arXiv 2502.04412), blocks as denoising steps, carried over to encoders by us.
    """

    def __init__(self, encoder: EncoderStates) -> None:
        super().__init__(encoder.id, len(encoder.blocks), encoder.hidden_size)
        self.encoder = encoder

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, every block's update and the token mask."""
        return self.encoder.updates(prompts)
