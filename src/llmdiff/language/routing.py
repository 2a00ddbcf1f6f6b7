"""Separate gains for groups of a denoiser's attention layers: each group can use other blocks of the LLM."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

RoutingForm = Literal["signed", "softmax"]


class RoutedGains(nn.Module):
    """Changes of the shared gains for each group of attention layers.

        signed:   g_dl = g_l + G_dl                        k_dl = k_l + K_dl
        softmax:  g_dl = g_l * L softmax_l(G_dl)           k_dl = k_l * L softmax_l(K_dl)

    G and K start at 0, where both forms give the shared gains. "signed" can invert a block's sign for one group;
    "softmax" moves weight between blocks and keeps every sign. G and K have the unit of gamma and kappa, see
    `ContextEncoding`.

    Shapes:
        gamma, kappa (None in "paper"): (L, d), G and K of d groups.
    Source: ours; "A controlled study of text conditioning" (arXiv 2602.03510) finds that a mixture of an LLM's layers
        for each block of the denoiser is better than one mixture for all.
    """

    def __init__(self, num_blocks: int, groups: int, *, form: RoutingForm, guided: bool) -> None:
        super().__init__()
        self.groups, self.form = groups, form
        self.gamma = nn.Parameter(torch.zeros(num_blocks, groups))
        self.kappa = nn.Parameter(torch.zeros(num_blocks, groups)) if guided else None

    def forward(
        self, gamma: Float[Tensor, " L"], kappa: Float[Tensor, " L"] | None
    ) -> tuple[Float[Tensor, "L d"], Float[Tensor, "L d"] | None]:
        """Return the gains of every group. Shapes: (L,), (L,) or None => (L, d), (L, d) or None."""
        lone = None if kappa is None or self.kappa is None else self._gains(kappa, self.kappa)
        return self._gains(gamma, self.gamma), lone

    def _gains(self, shared: Float[Tensor, " L"], own: Float[Tensor, "L d"]) -> Float[Tensor, "L d"]:
        if self.form == "signed":
            return shared[:, None] + own
        return shared[:, None] * len(own) * own.softmax(dim=0)
