"""Three layers of an LLM side by side as the text encoding."""

from collections.abc import Sequence

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates


class Taps(LLMStates):
    """The outputs of three blocks, at a quarter, a half and three quarters of the depth, joined on the width:

        c = [LN(x_{L/4}) ; LN(x_{L/2}) ; LN(x_{3L/4})]

    Shapes: x (B, T, D) => (B, T, 3 D).
    Source: FLUX.2 (black-forest-labs/flux2), which joins layers 10, 20 and 30 of the 40 of Mistral Small, and 9, 18 and
        27 of the 36 of Qwen3. There the denoiser is trained on them; LN is ours, against the massive activations of
        small LLMs.
    """

    def __init__(self, llm: DecoderLLM, *, template: str | None = None) -> None:
        super().__init__(llm, template=template)
        self.blocks = [max(1, round(depth * llm.num_blocks)) - 1 for depth in (0.25, 0.5, 0.75)]
        self.hidden_size = len(self.blocks) * llm.hidden_size

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the three states of every token. Shapes: (B, T, 3 D), (B, T); padding rows are 0."""
        return self.normed_outputs(self.blocks, prompts)
