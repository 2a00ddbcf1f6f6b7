"""The states of an LLM at chosen depths, for the tokens that our own encoding keeps."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.language.blocks import run_blocks
from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding


class LLMStates:
    """A frozen LLM as a source of states for our adapter; subclasses choose the states in `encode`."""

    num_blocks = 0

    def __init__(self, llm: DecoderLLM, *, template: str | None = None) -> None:
        self.llm, self.template = llm, template
        self.id, self.hidden_size = llm.id, llm.hidden_size

    def read(self, prompts: Sequence[str], visit: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """Call `visit(l, x_l, u_l)` for every block l in order and return the token mask (B, T).

        x_l enters block l and x_l + u_l leaves it; x_l and u_l are (B, T, D), padding rows 0.
        """
        tokens = self.llm.tokenize(list(prompts), template=self.template)
        x0 = run_blocks(self.llm, tokens, lone=None, visit=lambda index, x, u, _: visit(index, x, u))
        return tokens.token_mask.to(x0.device)

    def normed_outputs(self, blocks: Sequence[int], prompts: Sequence[str]) -> TextEncoding:
        """Return LN(x_{l+1}) of these blocks l side by side. Shapes: (B, T, n * D), (B, T); padding rows are 0."""
        outputs: dict[int, Tensor] = {}

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index in blocks:
                outputs[index] = layer_normed(x + u)

        mask = self.read(prompts, keep)
        return TextEncoding(states=torch.cat([outputs[block] for block in blocks], dim=-1), token_mask=mask)


def layer_normed(states: Tensor) -> Tensor:
    """Return the states with mean 0 and variance 1 per token, no weights; rows of zeros stay zeros."""
    return F.layer_norm(states, states.shape[-1:])


class EnteringStates(LLMStates):
    """The states that enter one block: c = x_l.

    l = 0, words without context, is an ablation of c = x_0 + sum_l g_l s_l. l = L - 1 is the penultimate layer,
    transformers' `hidden_states[-2]`; the adapter normalises.

    Source: ours (l = 0); Saharia et al. 2022 (arXiv 2205.11487) and later pipelines take a text encoder's second-last
        layer, because the last one is specialised to predict the next token.
    """

    def __init__(self, llm: DecoderLLM, *, block: int, template: str | None = None) -> None:
        super().__init__(llm, template=template)
        self.block = block % llm.num_blocks

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        kept: list[Tensor] = []

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index == self.block:
                kept.append(x)

        mask = self.read(prompts, keep)
        return TextEncoding(states=kept[0], token_mask=mask)
