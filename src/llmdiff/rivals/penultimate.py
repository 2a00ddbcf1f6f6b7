"""The LLM's penultimate layer as the text encoding."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff.language.llm import DecoderLLM
from llmdiff.rivals.block_inputs import read_blocks
from llmdiff.types import TextEncoding


class PenultimateStates:
    """The states that enter the LLM's last block: c = x_{L-1}, transformers' `hidden_states[-2]`.

    Source: Saharia et al. 2022 (arXiv 2205.11487) and later pipelines take a text encoder's second-last layer,
        because the last one is bent towards the next token; the norm is the adapter's.
    """

    num_blocks = 0

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        self.llm = llm
        self.id = llm.id
        self.hidden_size = llm.hidden_size
        self.template = template
        self.max_length = max_length

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        kept: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index == self.llm.num_blocks - 1:
                kept.append(x)

        mask = read_blocks(self.llm, prompts, keep, template=self.template, max_length=self.max_length)
        return TextEncoding(states=kept[0], token_mask=mask)
