"""From prompts to text encodings: a decoder-only LLM, its blocks' updates, and their weighted sum."""

from llmdiff.language.blocks import Lone, run_blocks
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.settings import Encoding
from llmdiff.language.tokens import PromptTokens

__all__ = ["ContextEncoding", "DecoderLLM", "Encoding", "Lone", "PromptTokens", "run_blocks"]
