"""Questions about a prompt's picture, how they are scored, and figures that pool them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.statistics import Interval, bootstrap_ratios
from llmdiff.evaluation.suites.answerers import Answerer, WordAnswerer, load_answerer
from llmdiff.evaluation.suites.suite import SuitePrompt

Tally = Mapping[str, tuple[float, float]]
"""Of one prompt: by category the sum of its scores, and their number."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture.

    `category`: "group - detail", or a group alone. `answers`: any of these is right. `after`: ids of the questions that
    it builds on.
    """

    text: str
    category: str
    answers: tuple[str, ...] = ("yes",)
    id: int = 0
    after: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        """Return its category without the detail."""
        return self.category.split("-")[0].strip()


def questions_of(row: SuitePrompt) -> Sequence[Question]:
    """Return the questions of a prompt; none if its benchmark asks none."""
    found: Sequence[Question] = row.facts.get("questions", ())
    return found


class QuestionScorer:
    """The mean score of a picture's questions, answered by a VQA model; the base of benchmarks that ask questions.

    The result of a picture has `score`, `answers` (of every question, in their order, 1 for right) and `parts` (the
    mean score of every group of questions).

    Fields:
        soft: answers count by their probability; otherwise right is what is more probable than not.
    """

    name: ClassVar[str]
    soft: ClassVar[bool] = False

    def __init__(self, answerer: Answerer) -> None:
        self.answerer, self.model_id = answerer, answerer.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with the BLIP for questions, or the chat model that reads pictures, of a folder or Hub id.

        Raises:
            MetricError: the model is not available, or neither.
        """
        return cls(load_answerer(name_or_path, device=device))

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of every picture; empty for prompts without questions."""
        return [self._judged(picture, row) for picture, row in zip(pictures, rows, strict=True)]

    @classmethod
    def failed(cls, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: no question is answered right."""
        questions = questions_of(row)
        return cls._result(questions, np.zeros(len(questions)), np.zeros(len(questions)), 0.0)

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score of every question, given how right its answer is."""
        return answers

    @staticmethod
    def combine(scores: NDArray[np.float64]) -> float:
        """Return a picture's score, given those of its questions."""
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
    """Return every question's score: its answer, but 0 if a question that it builds on scored 0.

    `chained`: a question that scored 0 by this rule counts as 0 for later ones; otherwise only its own answer counts.

    Source: Cho et al. 2024 (Davidsonian Scene Graph, arXiv 2310.18235), section 3.
    """
    scores = {one.id: float(answer) for one, answer in zip(questions, answers, strict=True)}
    parents = scores if chained else dict(scores)
    for one in questions:
        if any(parents.get(parent, 1.0) == 0 for parent in one.after):
            scores[one.id] = 0.0
    return np.array([scores[one.id] for one in questions])


def tally_answers(
    row: SuitePrompt, results: Sequence[Mapping[str, Any]], categories: Callable[[Question], Iterable[str]]
) -> dict[str, tuple[float, float]]:
    """Return the tally of a prompt: the answers about its pictures, in every category of their questions."""
    tally: dict[str, tuple[float, float]] = {}
    for result in results:
        for one, answer in zip(questions_of(row), result.get("answers", ()), strict=False):
            for category in categories(one):
                total, count = tally.get(category, (0.0, 0.0))
                tally[category] = (total + answer, count + 1)
    return tally


def pooled_figures(
    tallies: Sequence[Tally],
    combine: Callable[[Mapping[str, NDArray[np.float64]]], Mapping[str, NDArray[np.float64]]] = dict,
) -> dict[str, Interval]:
    """Return the mean score of every category over all prompts' scores, with intervals over prompts.

    `combine` turns the ratios of categories, arrays over resamples, into other figures by name.
    """
    names = list(dict.fromkeys(name for tally in tallies for name in tally))
    if not names:
        return {}
    cells = np.array([[tally.get(name, (0.0, 0.0)) for name in names] for tally in tallies], dtype=np.float64)
    figures: list[str] = []

    def combined(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        found = combine({name: ratios[..., index] for index, name in enumerate(names)})
        figures[:] = list(found)
        return np.stack(list(found.values()), axis=-1)

    intervals = bootstrap_ratios(cells[..., 0], cells[..., 1], combined)
    return dict(zip(figures, intervals, strict=True))
