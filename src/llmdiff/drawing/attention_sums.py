"""Sums of cross-attention over layers, for every denoising step and size of feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.adapter.processors import KeysValues


class AttentionSums:
    """Adds up the attention of layers to each token while one picture is drawn; call `next_step` after every step.

    Args:
        kinds: number of maps that a layer has, for example one for each of its branches.
        token_count: number of tokens that are kept; attention to later ones, the padding, is left out.
    """

    def __init__(self, *, kinds: int, token_count: int) -> None:
        self._kinds, self._tokens = kinds, token_count
        self._steps: list[dict[int, tuple[Tensor, int]]] = [{}]

    def next_step(self) -> None:
        """Begin the next denoising step."""
        self._steps.append({})

    def add(self, shares: Tensor) -> None:
        """Add one layer's softmax weights in the current step. Shapes: (kinds, N places, T tokens)."""
        seen = shares[..., : self._tokens].cpu()
        sums, layers = self._steps[-1].get(seen.shape[1], (torch.zeros(()), 0))
        self._steps[-1][seen.shape[1]] = (sums + seen, layers + 1)

    def maps(self, height_by_width: float, side: int) -> Tensor:
        """Return the means over layers, (kinds, steps, T, side, side)."""
        steps: list[Tensor] = []
        for sizes in self._steps:
            if not sizes:  # opened after the last step
                continue
            total, count = torch.zeros(self._kinds, self._tokens, side, side), 0
            for places, (sums, layers) in sizes.items():
                rows = max(1, round((places * height_by_width) ** 0.5))
                grid = sums.transpose(1, 2).reshape(self._kinds, self._tokens, rows, places // rows)
                total += F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
                count += layers
            steps.append(total / count)
        return torch.stack(steps, dim=1)


def attention_shares(query: Tensor, text: KeysValues, scale: float | None) -> Tensor:
    """Return softmax weights averaged over heads: query (1, H, N, d), keys (B, H, T, d) => (N, T) float32."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = query.float() @ text.key[-1:].float().transpose(-1, -2) * scale
    if text.mask is not None:
        mask = text.mask[-1:]
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    weights: Tensor = logits.softmax(-1).mean(1)[0]
    return weights
