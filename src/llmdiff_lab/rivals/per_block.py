"""Per-block injection: every attention layer of the denoiser reads another block of the LLM."""

from collections.abc import Sequence

import torch
from torch import nn

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.connector import Connector
from llmdiff_lab.rivals.last_hidden import LastHiddenStates


class PerBlockConnector(Connector):
    """Attention layer i of n reads the output of LLM block b(i) through a projection of its own:

        c_i = W_i LN(x_{b(i)}),   b(i) = round((i + 1) L / n), from the first blocks to the last

    Keys and values are the layer's own, frozen projections of c_i.

    Shapes: x (B, T, D), W_i (W, D) without bias => n times (B, T, W) side by side.
    Source: Liu et al. 2024 (Playground v3, arXiv 2409.10695) and HiDream-I1 (2025): one LLM layer per denoiser
        block, in HiDream with one bias-free projection each. Both train the denoiser; here it is frozen. If there
        are fewer layers than blocks, blocks are skipped evenly. LN is ours, against the massive activations of
        small LLMs.
    """

    def __init__(self, source: LastHiddenStates, layers: Sequence[str], *, width: int) -> None:
        super().__init__(source)
        self.layers = tuple(layers)
        blocks, count = source.llm.num_blocks, len(layers)
        # b(i) as an index from 0.
        self.read_blocks = tuple(max(0, round((i + 1) * blocks / count) - 1) for i in range(count))
        self.projections = nn.ModuleList(nn.Linear(source.hidden_size, width, bias=False) for _ in layers)

    def start(self, rms: float) -> None:
        """Initialise the projections at random, so that their outputs have this root mean square."""
        for projection in self.projections:
            assert isinstance(projection, nn.Linear)
            nn.init.normal_(projection.weight, std=rms * projection.in_features**-0.5)

    def read(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the normalised outputs of the layers' blocks side by side, (B, T, n * D)."""
        return self.source.normed_outputs(self.read_blocks, prompts)

    def carried(self, raw: TextEncoding) -> TextEncoding:
        """Return all layers' states side by side, (B, T, n * W)."""
        parts = raw.states.to(next(self.parameters()).device).chunk(len(self.layers), dim=-1)
        projected = [layer(part) for layer, part in zip(self.projections, parts, strict=True)]
        return TextEncoding(states=torch.cat(projected, dim=-1), token_mask=raw.token_mask)
