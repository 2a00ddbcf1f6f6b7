"""Prompts encoded together with what a closed LLM says of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.proxy import ClosedLLM
from llmdiff.language.weights import parse_weights
from llmdiff.types import TextEncoding

Keep = Literal["answer", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A closed LLM and what becomes of its answers.

    keep="answer": the answer's tokens are encoded, with the prompt before them as context. keep="prompt": the
    prompt's own tokens are encoded, with an answer before them; several answers give several encodings of the same
    tokens, whose mean is taken. A prompt without an answer is encoded as without a closed LLM.

    Raises:
        ConfigError: several answers are asked for and kept.
    """

    closed: ClosedLLM
    keep: Keep = "answer"

    def __post_init__(self) -> None:
        if self.keep not in ("answer", "prompt"):
            raise ConfigError(f'keep is {self.keep!r}, expected "answer" or "prompt"')
        if self.keep == "answer" and self.closed.settings.answers > 1:
            raise ConfigError(
                f'answers is {self.closed.settings.answers} with keep="answer": several answers have tokens of their '
                'own, which have no mean; use keep="prompt", or one answer'
            )


def readings(prompt: str, plain: str, advice: Advice | None) -> list[tuple[str, str]]:
    """Returns what is encoded for a prompt and what is read before it, a pair for every answer.

    `plain` is the prompt without its weights, which the closed LLM reads. Without an answer: the prompt, and nothing.
    """
    answers = advice.closed.answers(plain) if advice is not None and plain.strip() else ()
    if advice is None or not answers:
        return [(prompt, "")]
    if advice.keep == "answer":
        return [(answer, plain) for answer in answers]
    return [(prompt, answer) for answer in answers]


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
