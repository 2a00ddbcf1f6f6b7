"""Questions about a prompt's picture, and how their answers are scored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.answerers import Answerer, WordAnswerer, load_answerer
from llmdiff.evaluation.suites.suite import SuitePrompt


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture.

    Fields:
        category: "group - detail", or a group alone.
        answers: the right answers; any of them counts.
        after: ids of the questions that it depends on.
    """

    text: str
    category: str
    answers: tuple[str, ...] = ("yes",)
    id: int = 0
    after: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        """Return the category without the detail."""
        return self.category.split("-")[0].strip()


def questions_of(row: SuitePrompt) -> Sequence[Question]:
    """Return the questions of a prompt; empty if its benchmark has none."""
    found: Sequence[Question] = row.metadata.get("questions", ())
    return found


class QuestionScorer:
    """Base of scorers that ask a VQA model about pictures: the mean score of a picture's questions.

    A picture's result has `score`, `answers` (for every question in order, 1 if right) and `parts` (the mean score of
    every group of questions).

    Fields:
        soft: whether an answer scores its probability, rather than 1 above a probability of 0.5 and else 0.
    """

    name: ClassVar[str]
    soft: ClassVar[bool] = False

    def __init__(self, answerer: Answerer) -> None:
        self.answerer, self.model_id = answerer, answerer.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with a BLIP for questions, or a chat model that reads pictures, of a folder or Hub id.

        Raises:
            MetricError: the model is not available, or is neither.
        """
        return cls(load_answerer(name_or_path, device=device))

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of every picture; empty for prompts without questions."""
        return [self._judged(picture, row) for picture, row in zip(pictures, rows, strict=True)]

    @classmethod
    def failed(cls, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: no right answers."""
        questions = questions_of(row)
        return cls._result(questions, np.zeros(len(questions)), np.zeros(len(questions)), 0.0)

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of the questions, given their answers."""
        return answers

    @staticmethod
    def combine(scores: NDArray[np.float64]) -> float:
        """Return a picture's score, given the scores of its questions."""
        return float(scores.mean())

    def _judged(self, picture: NDArray[np.uint8], row: SuitePrompt) -> dict[str, Any]:
        questions = questions_of(row)
        if not questions:
            return {}
        answers = self._answers(np.repeat(picture[None], len(questions), axis=0), questions)
        scores = self.scores(questions, answers)
        return self._result(questions, answers, scores, self.combine(scores))

    def _answers(self, pictures: Pictures, questions: Sequence[Question]) -> NDArray[np.float64]:
        texts = [one.text for one in questions]
        if any(set(one.answers) - {"yes", "no"} for one in questions):
            if not isinstance(self.answerer, WordAnswerer):
                raise MetricError(
                    f"metric {self.name}: answerer {self.model_id!r} answers yes or no only, expected one with "
                    "`probability`, for questions such as 'How many ...'"
                )
            found = self.answerer.probability(pictures, texts, [one.answers for one in questions])
        else:
            yes = self.answerer.yes(pictures, texts)
            found = np.where([one.answers == ("no",) for one in questions], 1 - yes, yes)
        return found if self.soft else (found > 0.5).astype(np.float64)

    @staticmethod
    def _result(
        questions: Sequence[Question],
        answers: NDArray[np.float64],
        scores: NDArray[np.float64],
        score: float,
    ) -> dict[str, Any]:
        if not questions:
            return {}
        groups: dict[str, list[float]] = {}
        for one, value in zip(questions, scores, strict=True):
            groups.setdefault(one.group, []).append(float(value))
        parts = {group: float(np.mean(values)) for group, values in groups.items()}
        return {"score": score, "answers": [float(one) for one in answers], "parts": parts}


def dependent_scores(
    questions: Sequence[Question], answers: NDArray[np.float64], *, chained: bool
) -> NDArray[np.float64]:
    """Return every question's score: its answer, but 0 if a question that it depends on scored 0.

    `chained`: whether a score of 0 by this rule passes on to later questions; else only answers do.

    Source: Cho et al. 2024 (Davidsonian Scene Graph, arXiv 2310.18235), section 3.
    """
    scores = {one.id: float(answer) for one, answer in zip(questions, answers, strict=True)}
    parents = scores if chained else dict(scores)
    for one in questions:
        if any(parents.get(parent, 1.0) == 0 for parent in one.after):
            scores[one.id] = 0.0
    return np.array([scores[one.id] for one in questions])


def sum_answers(
    row: SuitePrompt, results: Sequence[Mapping[str, Any]], categories: Callable[[Question], Iterable[str]]
) -> dict[str, tuple[float, float]]:
    """Return the sum and the number of the answers about a prompt's pictures, in every category of the questions."""
    sums: dict[str, tuple[float, float]] = {}
    for result in results:
        for one, answer in zip(questions_of(row), result.get("answers", ()), strict=False):
            for category in categories(one):
                total, count = sums.get(category, (0.0, 0.0))
                sums[category] = (total + answer, count + 1)
    return sums
