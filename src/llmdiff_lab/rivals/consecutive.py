"""The paper's sum with differences of consecutive blocks instead of lone updates."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff_lab.rivals.context_only import ContextOnly


class Consecutive(ContextOnly):
    """c = x_0 + sum_l g_l (u_l - u_{l-1}),   u_{-1} = 0,   u_l = block_l(x_l | causal context) - x_l

    A score is the difference between the updates of a block and the block before it; no block reads a token alone.
    Without clipping this is `ContextOnly` with gains g_l - g_{l+1}; scales and clipping are per difference.

    Source: a second reading of the score in Dong et al. 2024 (arXiv 2502.04412): its text also fits a difference
        between consecutive denoising steps of the same token.
    """

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, the differences of consecutive blocks' updates and the token mask."""
        first, updates, mask = super().updates(prompts)
        differences = [one - before for one, before in zip(updates[1:], updates[:-1], strict=True)]
        return first, [updates[0], *differences], mask
