"""Our encoding without the subtraction: a sum of context updates."""

from collections.abc import Sequence

from torch import Tensor

from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.rivals.block_inputs import read_blocks
from llmdiff_lab.rivals.update_sum import UpdateSum


class ContextOnly(UpdateSum):
    """c = x_0 + sum_l g_l u_l,   u_l = block_l(x_l | causal context) - x_l

    Source: ours, an ablation of Dong et al. 2024 (arXiv 2502.04412): no lone update is subtracted.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        super().__init__(llm.id, llm.num_blocks, llm.hidden_size)
        self.llm = llm
        self.template = template
        self.max_length = max_length

    def updates(self, prompts: Sequence[str]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return x_0, every block's context update and the token mask."""
        first: list[Tensor] = []
        updates: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index == 0:
                first.append(x)
            updates.append(u)

        mask = read_blocks(self.llm, prompts, keep, template=self.template, max_length=self.max_length)
        return first[0], updates, mask
