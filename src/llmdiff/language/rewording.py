"""Encode prompts with an open LLM together with a closed LLM's rewording of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from llmdiff.errors import ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.weights import parse_weights
from llmdiff.types import TextEncoding

if TYPE_CHECKING:
    from llmdiff.language.closed_llm import ClosedLLM

Keep = Literal["answer", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Rewording:
    """A closed LLM and how its answers are used.

    keep="answer": encode the tokens of the answer, with the prompt before them as context. keep="prompt": encode the
    prompt's tokens, with the answer before them as context; the encodings of several answers are averaged. A prompt
    without an answer is encoded unchanged.

    Raises:
        ConfigError: `keep` is unknown, or several answers are requested and kept.
    """

    closed: "ClosedLLM"
    keep: Keep = "answer"

    def __post_init__(self) -> None:
        if self.keep not in ("answer", "prompt"):
            raise ConfigError(f'keep is {self.keep!r}, expected "answer" or "prompt"')
        if self.keep == "answer" and self.closed.settings.answers > 1:
            raise ConfigError(
                f'answers is {self.closed.settings.answers} with keep="answer": several answers have different '
                'tokens and cannot be averaged; use keep="prompt", or one answer'
            )

    @property
    def title(self) -> str:
        """Return a text that identifies the rewording: the closed LLM, `keep` and the number of answers."""
        settings = self.closed.settings
        return f"{settings.model}, {self.keep}, {settings.answers} answers"


def readings(prompt: str, plain: str, rewording: Rewording | None) -> list[tuple[str, str]]:
    """Return pairs of the text to encode and its context, one for every answer.

    `plain` is the prompt without weights, which is sent to the closed LLM. Without an answer: the prompt and "".
    """
    answers = rewording.closed.answers(plain) if rewording is not None and plain.strip() else ()
    if rewording is None or not answers:
        return [(prompt, "")]
    if rewording.keep == "answer":
        return [(answer, plain) for answer in answers]
    return [(prompt, answer) for answer in answers]


def encode_reworded(
    context: ContextEncoding,
    llm: DecoderLLM,
    prompts: Sequence[str],
    rewording: Rewording,
    *,
    reword: Collection[str] | None = None,
    generator: torch.Generator | None = None,
    weighted: bool = False,
    block_gains: Mapping[int, float] | None = None,
) -> TextEncoding:
    """Return the encoding c of the prompts after a closed LLM has reworded each, or those in `reword`.

    Prompts are sent to the closed LLM without weights; answers have no weights.

    Shapes:
        states: (B, T, D) float32, padding rows are exactly 0.
    Raises:
        PromptError: there are no prompts, or one is not a string.
    """
    texts: list[str] = []
    before: list[str] = []
    owners: list[int] = []
    for owner, prompt in enumerate(prompts):
        plain = parse_weights(prompt).text if weighted else prompt
        chosen = rewording if reword is None or prompt in reword else None
        for text, context_text in readings(prompt, plain, chosen):
            texts.append(text)
            before.append(context_text)
            owners.append(owner)
    encoding = context.encode(
        llm, texts, generator=generator, weighted=weighted, contexts=before, block_gains=block_gains
    )
    return _means(encoding, torch.tensor(owners), len(prompts))


def _means(encoding: TextEncoding, owners: Tensor, count: int) -> TextEncoding:
    """Return the mean of every prompt's encodings, which have the same tokens."""
    if len(owners) == count:
        return encoding
    owners = owners.to(encoding.states.device)
    shape = (count, *encoding.states.shape[1:])
    summed = encoding.states.new_zeros(shape).index_add_(0, owners, encoding.states)
    sizes = torch.bincount(owners, minlength=count)
    firsts = torch.searchsorted(owners, torch.arange(count, device=owners.device))
    sizes = sizes.reshape(-1, *(1,) * (summed.ndim - 1))
    return TextEncoding(states=summed / sizes, token_mask=encoding.token_mask[firsts])
