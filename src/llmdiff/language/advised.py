"""Prompts encoded together with what a closed LLM says of them."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmdiff.language.advice import Advice, readings
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.weights import parse_weights
from llmdiff.types import TextEncoding


def encode_with_advice(
    context: ContextEncoding,
    llm: DecoderLLM,
    prompts: Sequence[str],
    advice: Advice,
    *,
    ask: Collection[str] | None = None,
    generator: torch.Generator | None = None,
    weighted: bool = False,
) -> TextEncoding:
    """Returns c of the prompts after a closed LLM has been asked about each, or about those in `ask`.

    The closed LLM reads a prompt without its weights; an answer that is kept has none.

    Shapes:
        states: (B, T, D) float32, padding rows are exactly 0.
    Raises:
        PromptError: no prompts, or one that is not a string.
    """
    texts: list[str] = []
    before: list[str] = []
    owners: list[int] = []
    for owner, prompt in enumerate(prompts):
        plain = parse_weights(prompt).text if weighted else prompt
        asked = ask is None or prompt in ask
        for text, context_text in readings(prompt, plain, advice if asked else None):
            texts.append(text)
            before.append(context_text)
            owners.append(owner)
    encoding = context.encode(llm, texts, generator=generator, weighted=weighted, contexts=before)
    return _means(encoding, torch.tensor(owners), len(prompts))


def _means(encoding: TextEncoding, owners: Tensor, count: int) -> TextEncoding:
    """The mean of every prompt's encodings; they have the same tokens."""
    if len(owners) == count:
        return encoding
    owners = owners.to(encoding.states.device)
    shape = (count, *encoding.states.shape[1:])
    summed = encoding.states.new_zeros(shape).index_add_(0, owners, encoding.states)
    sizes = torch.bincount(owners, minlength=count)
    firsts = torch.searchsorted(owners, torch.arange(count, device=owners.device))
    return TextEncoding(states=summed / sizes[:, None, None], token_mask=encoding.token_mask[firsts])
