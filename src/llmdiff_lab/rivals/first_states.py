"""The LLM's embeddings alone: our encoding without any block's update."""

from collections.abc import Sequence

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates


class FirstStates(LLMStates):
    """c = x_0, the states that enter the first block: words without context.

    Source: ours, an ablation of c = x_0 + sum_l g_l s_l.
    """

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        return self.entering(0, prompts)
