"""What a study is made of: settings, pairs, what a rater sees, answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmdiff.errors import LLMDiffError

Choice = Literal["left", "right", "tie"]


class UnknownRaterError(LLMDiffError):
    """There is no rater with this token, or no pair at this position."""


class InvalidAnswerError(LLMDiffError, ValueError):
    """An answer does not fit the study's questions."""


class StudyFullError(LLMDiffError):
    """The study has as many raters as it may have."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is asked. `questions`: id => text; `pairs_per_rater` None: every pair."""

    title: str
    questions: Mapping[str, str]
    ties: bool
    systems: tuple[str, ...]
    pairs_per_rater: int | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures of a prompt (its index). Without systems it is an attention check: the first is intact."""

    prompt: int
    first: str | None
    second: str | None
    first_picture: str
    second_picture: str


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """What a rater sees at a position; `choices` is empty until answered."""

    position: int
    prompt: str
    left_picture: str
    right_picture: str
    choices: Mapping[str, Choice]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a rater is. `next_position` is the first without an answer, None at the end."""

    total: int
    done: int
    next_position: int | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One choice of one rater (a number, not the token). Systems are None in attention checks.

    `choice` is by side; `chosen` is "first" or "second" of the pair, or "tie".
    """

    rater: int
    pair: int
    prompt: int
    question: str
    first: str | None
    second: str | None
    first_is_left: bool
    choice: Choice

    @property
    def chosen(self) -> Literal["first", "second", "tie"]:
        """Which of the pair's pictures was chosen, whichever side it stood on."""
        if self.choice == "tie":
            return "tie"
        return "first" if (self.choice == "left") == self.first_is_left else "second"
