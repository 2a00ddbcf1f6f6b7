"""The LLM's last hidden state as the text encoding: what most pipelines with an LLM do."""

from collections.abc import Sequence

from llmdiff.language.llm import DecoderLLM
from llmdiff.types import TextEncoding


class LastHiddenStates:
    """The states after the LLM's final norm, for the same tokens that `ContextEncoding` keeps."""

    num_blocks = 0

    def __init__(self, llm: DecoderLLM, *, template: str | None = None, max_length: int = 512) -> None:
        self.llm = llm
        self.id = llm.id
        self.hidden_size = llm.hidden_size
        self.template = template
        self.max_length = max_length

    def encode(self, prompts: Sequence[str]) -> TextEncoding:
        """The states of the prompts. Shapes: (B, T, D), (B, T); padding rows are 0."""
        return self.llm.last_hidden_states(prompts, template=self.template, max_length=self.max_length)
