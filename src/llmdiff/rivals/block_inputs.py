"""The states of an LLM at chosen depths, for the tokens that our own encoding keeps."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from llmdiff.language.blocks import run_blocks
from llmdiff.language.llm import DecoderLLM

Pick = Callable[[int, Tensor, Tensor], None]


def read_blocks(
    llm: DecoderLLM, prompts: Sequence[str], visit: Pick, *, template: str | None, max_length: int
) -> Tensor:
    """Return the token mask (B, T), after `visit(l, x_l, u_l)` for every block l in order.

    x_l enters block l and x_l + u_l leaves it; x_l and u_l are (B, T, D), padding rows 0.
    """
    tokens = llm.tokenize(list(prompts), template=template, max_length=max_length)
    x0 = run_blocks(llm, tokens, lone=None, visit=lambda index, x, u, _: visit(index, x, u))
    return tokens.token_mask.to(x0.device)


def layer_normed(states: Tensor) -> Tensor:
    """Return the states with mean 0 and variance 1 per token, no weights; rows of zeros stay zeros."""
    return F.layer_norm(states, states.shape[-1:])
