"""Types of a study: settings, pairs, what a rater sees, answers."""

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
    """The study has the maximum number of raters."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings of a study. `questions`: id => text; `pairs_per_rater`: None for every pair."""

    title: str
    questions: Mapping[str, str]
    ties: bool
    systems: tuple[str, ...]
    pairs_per_rater: int | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures of a prompt (its index). Without systems it is an attention check, whose first picture is intact."""

    prompt: int
    first: str | None
    second: str | None
    first_picture: str
    second_picture: str


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """The pair that a rater sees at a position; `choices` is empty until answered."""

    position: int
    prompt: str
    left_picture: str
    right_picture: str
    choices: Mapping[str, Choice]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a rater; `next` is the first position without an answer, None at the end."""

    total: int
    done: int
    next: int | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One choice of one rater, given by number, not by token. Systems are None in attention checks."""

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
        """Return which of the pair's pictures was chosen, independent of its side."""
        if self.choice == "tie":
            return "tie"
        return "first" if (self.choice == "left") == self.first_is_left else "second"
