"""Sources of states with a few trained weights of their own, before the adapter."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from llmdiff.types import TextEncoding


class LearnedSource(nn.Module, ABC):
    """A frozen reader whose several states per token are combined with trained weights.

    `attach` uses it like any other source: `id`, `hidden_size`, `num_blocks` (0) and `encode`. Training uses two
    halves: `read`, frozen and done once per caption, and `combine`, which has the weights.

    Fields:
        learns_in_every_step: train the weights as long as the adapter and read captions in every step, for sources
            with many weights; otherwise train them in a first stage on few captions and then freeze them.
    """

    learns_in_every_step = False

    id: str
    hidden_size: int
    num_blocks = 0

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the frozen states side by side. Shapes: (B, T, n * D), (B, T); padding rows are 0."""

    @abstractmethod
    def combine(self, raw: TextEncoding) -> TextEncoding:
        """Return the states that the adapter reads. Shapes: (B, T, n * D) => (B, T, D), or (B, T, groups, D)."""

    def calibrate(self, prompts: Sequence[str]) -> None:
        """Set fixed scales from ordinary captions, once; by default there are none."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        return self.combine(self.read(prompts))
