"""The LLM's penultimate layer as the text encoding."""

from collections.abc import Sequence

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates


class PenultimateStates(LLMStates):
    """The states that enter the LLM's last block: c = x_{L-1}, transformers' `hidden_states[-2]`.

    Source: Saharia et al. 2022 (arXiv 2205.11487) and later pipelines take a text encoder's second-last layer,
        because the last one is specialised to predict the next token. The adapter normalises.
    """

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        return self.entering(self.llm.num_blocks - 1, prompts)
