"""The LLM's embeddings alone: what is left of our encoding when every block's update is taken away."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff.language.llm import DecoderLLM
from llmdiff.rivals.block_inputs import read_blocks
from llmdiff.types import TextEncoding


class FirstStates:
    """c = x_0, the states that enter the first block: words without context.

    Source: ours, an ablation of c = x_0 + sum_l g_l s_l.
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
            if index == 0:
                kept.append(x)

        mask = read_blocks(self.llm, prompts, keep, template=self.template, max_length=self.max_length)
        return TextEncoding(states=kept[0], token_mask=mask)
