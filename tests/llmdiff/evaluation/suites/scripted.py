"""Scorers' models and systems that do what a test says, and what tests of benchmarks share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.image_text import SIDE_PX

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.benchmarks import BENCHMARKS
from llmdiff.evaluation.suites.official import official_figures
from llmdiff.evaluation.suites.questions import questions_of
from llmdiff.evaluation.suites.suite import PromptSuite

PICTURE = np.zeros((1, 8, 8, 3), dtype=np.uint8)


class Says:
    """Answers what a test says of every question, and reads what it says is in every picture."""

    model_id = "says"

    def __init__(self, answers: dict[str, float], texts: Sequence[str] = ()) -> None:
        self.answers, self.texts = answers, list(texts)
        self.wanted: list[Sequence[str]] = []

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self.answers[question] for question in questions])

    def probability(
        self, pictures: Pictures, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        self.wanted += answers
        return self.yes(pictures, questions)

    def read(self, pictures: Pictures) -> list[str]:
        return [self.texts.pop(0) for _ in pictures]


def means(figures: dict[str, Any]) -> dict[str, float]:
    return {name: one["mean"] for name, one in figures.items()}


def random_results(suite: PromptSuite, pictures: int, seed: int = 0) -> list[list[dict[str, Any]]]:
    """For every picture a random right or wrong answer to each of its prompt's questions."""
    rng = np.random.default_rng(seed)
    answers = [
        [rng.integers(0, 2, len(questions_of(row))).astype(float) for _ in range(pictures)]
        for row in suite.prompts
    ]
    return [[{"score": float(one.mean()), "answers": list(one)} for one in some] for some in answers]


def written_and_read(
    suite: PromptSuite, results: list[list[dict[str, Any]]], folder: Path, pictures: int, place: str = ""
) -> dict[str, Any]:
    BENCHMARKS[suite.name].write_scores(suite.prompts, results, folder, "ours")
    return official_figures(suite, suite.prompts, folder / place, images_per_prompt=pictures)


class Bright:
    """Answers yes as far as a picture is bright."""

    model_id = "bright"

    def yes(self, pictures: Pictures, questions: Sequence[str]) -> NDArray[np.float64]:
        return pictures[..., 0].mean((1, 2)) / 255


class RedSystem:
    """A system whose pictures are as red as it is told, with noise by the seed; some prompts it cannot draw."""

    def __init__(self, red: int, *, fails_at: str = "") -> None:
        self.red, self.fails_at, self.calls = red, fails_at, []  # type: ignore[var-annotated]

    def __call__(self, prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
        self.calls += zip(prompts, seeds, strict=True)
        if self.fails_at and any(self.fails_at in prompt for prompt in prompts):
            raise RuntimeError("out of paint")
        pictures = [np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3)) for seed in seeds]
        for picture in pictures:
            picture[..., 0] = self.red
        return np.stack(pictures).astype(np.uint8)
