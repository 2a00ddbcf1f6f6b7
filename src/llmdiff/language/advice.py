"""What a closed LLM says of prompts, and what of it is encoded."""

from dataclasses import dataclass
from typing import Literal

from llmdiff.errors import ConfigError
from llmdiff.language.proxy import ClosedLLM

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
