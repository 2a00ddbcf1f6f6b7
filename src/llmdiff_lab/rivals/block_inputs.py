"""The states of an LLM at chosen depths, for the tokens that our own encoding keeps."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from llmdiff.language.blocks import run_blocks
from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding

Pick = Callable[[int, Tensor, Tensor], None]


class LLMStates:
    """A frozen LLM as a source of states for our adapter; subclasses choose the states in `encode`."""

    num_blocks = 0

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        self.llm = llm
        self.id = llm.id
        self.hidden_size = llm.hidden_size
        self.template = template
        self.max_length = max_length

    def read(self, prompts: Sequence[str], visit: Pick) -> Tensor:
        """Call `visit` for every block and return the token mask; see `read_blocks`."""
        return read_blocks(self.llm, prompts, visit, template=self.template, max_length=self.max_length)

    def entering(self, block: int, prompts: Sequence[str]) -> TextEncoding:
        """Return x_l, what enters block l. Shapes: (B, T, D), (B, T); padding rows are 0."""
        kept: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index == block:
                kept.append(x)

        mask = self.read(prompts, keep)
        return TextEncoding(states=kept[0], token_mask=mask)


def read_blocks(
    llm: DecoderLLM, prompts: Sequence[str], visit: Pick, *, template: str | None, max_length: int
) -> Tensor:
    """Call `visit(l, x_l, u_l)` for every block l in order and return the token mask (B, T).

    x_l enters block l and x_l + u_l leaves it; x_l and u_l are (B, T, D), padding rows 0.
    """
    tokens = llm.tokenize(list(prompts), template=template, max_length=max_length)
    x0 = run_blocks(llm, tokens, lone=None, visit=lambda index, x, u, _: visit(index, x, u))
    return tokens.token_mask.to(x0.device)


def layer_normed(states: Tensor) -> Tensor:
    """Return the states with mean 0 and variance 1 per token, no weights; rows of zeros stay zeros."""
    return F.layer_norm(states, states.shape[-1:])
