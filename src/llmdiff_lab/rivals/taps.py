"""Three layers of an LLM side by side as the text encoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates, layer_normed

DEPTHS = (0.25, 0.5, 0.75)


class Taps(LLMStates):
    """The outputs of three blocks, at a quarter, a half and three quarters of the depth, joined on the width:

        c = [LN(x_{L/4}) ; LN(x_{L/2}) ; LN(x_{3L/4})]

    Shapes: x (B, T, D) => (B, T, 3 D).
    Source: FLUX.2 (black-forest-labs/flux2), which joins layers 10, 20 and 30 of the 40 of Mistral Small, and 9, 18 and
        27 of the 36 of Qwen3. There the denoiser is trained on them; LN is ours, against the massive activations of
        small LLMs.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        super().__init__(llm, template=template, max_length=max_length)
        self.taps = tuple(max(1, round(depth * llm.num_blocks)) for depth in DEPTHS)
        self.hidden_size = len(self.taps) * llm.hidden_size

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the three states of every token. Shapes: (B, T, 3 D), (B, T); padding rows are 0."""
        found: dict[int, Tensor] = {}

        def keep(index: int, x: Tensor, u: Tensor) -> None:
            if index + 1 in self.taps:
                found[index + 1] = layer_normed(x + u)

        mask = self.read(prompts, keep)
        return TextEncoding(states=torch.cat([found[tap] for tap in self.taps], dim=-1), token_mask=mask)
