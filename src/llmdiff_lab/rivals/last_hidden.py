"""The LLM's last hidden state as the text encoding, as in most pipelines with an LLM."""

from collections.abc import Sequence

from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.block_inputs import LLMStates


class LastHiddenStates(LLMStates):
    """The states after the LLM's final norm, for the same tokens that `ContextEncoding` keeps:

        c = norm(x_L)

    Source: what LaVi-Bridge reads (Zhao et al. 2024, arXiv 2403.07860), here without its own adapter and LoRA.
    """

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """Return the states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        return self.llm.last_hidden_states(prompts, template=self.template)
