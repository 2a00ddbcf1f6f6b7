"""The average of an LLM's layers, each normalised, as the text encoding."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates, layer_normed


class NormAverageStates(LLMStates):
    """The mean over the L blocks of their layer-normalised outputs:

        c = 1/L sum_{l=1..L} LN(x_l),   LN(x) = (x - mean x) / sqrt(var x + 1e-5), no weights

    Source: Wang et al. 2025 (arXiv 2506.08210), "norm-avg"; x_L is taken before the LLM's own last norm, which
        LN replaces.
    """

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        total: list[Tensor] = []

        def add(index: int, x: Tensor, u: Tensor) -> None:
            normed = layer_normed(x + u)
            total[:] = [normed if not total else total[0] + normed]

        mask = self.read(prompts, add)
        return TextEncoding(states=total[0] / self.llm.num_blocks, token_mask=mask)
