"""x_0 plus a learned sum of block updates without a subtraction, for LLMs and encoders."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from llmdiff.language.encoding import ContextEncoding
from llmdiff.types import BlockStates, TextEncoding
from llmdiff_lab.rivals.learned_source import LearnedSource


class UpdateSum(LearnedSource):
    """c = x_0 / x0_scale + sum_l gamma_l clip(u_l / scale_l): our encoding with all lone updates set to 0.

    Gains, scales and clipping are those of `ContextEncoding`, so that only the subtraction differs.
    """

    def __init__(self, id: str, num_updates: int, hidden_size: int, *, clip: float = 3.0) -> None:
        super().__init__()
        self.id = id
        self.hidden_size = hidden_size
        self.context = ContextEncoding(num_updates, hidden_size, encoding="paper", clip=clip)
        self.context.h_raw.requires_grad_(False)  # no noise is drawn

    @abstractmethod
    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0 (B, T, D), every block's update (B, T, D) and the token mask (B, T)."""

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return x_0 and all updates side by side. Shapes: (B, T, (1 + L) * D), (B, T)."""
        x0, updates, mask = self.updates(prompts)
        return TextEncoding(states=torch.cat([x0, *updates], dim=-1), token_mask=mask)

    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return c. Shapes: (B, T, (1 + L) * D) => (B, T, D)."""
        states = raw.states.to(self.context.gamma.device)
        x0, *updates = torch.split(states, self.hidden_size, dim=-1)
        context = torch.stack(updates)
        blocks = BlockStates(
            x0=x0,
            context=context,
            lone=torch.zeros(()).to(context).expand_as(context),
            token_mask=raw.token_mask.to(context.device),
            input_ids=torch.zeros(x0.shape[:2], dtype=torch.int64),
        )
        return TextEncoding(states=self.context.sum(blocks), token_mask=blocks.token_mask)

    @torch.no_grad()
    def calibrate(self, prompts: Sequence[str]) -> None:
        """Set the scales to median token norms over these captions, without first tokens."""
        norms: list[Tensor] = []
        for start in range(0, len(prompts), 16):
            raw = self.read(prompts[start : start + 16])
            words = raw.token_mask & (raw.token_mask.cumsum(1) > 1)
            parts = torch.unflatten(raw.states[words], -1, (-1, self.hidden_size))
            norms.append(torch.linalg.vector_norm(parts.float(), dim=-1))
        scales = torch.cat(norms).median(dim=0).values.clamp(min=1e-6)
        self.context.x0_scale.copy_(scales[0])
        self.context.score_scale.copy_(scales[1:])
