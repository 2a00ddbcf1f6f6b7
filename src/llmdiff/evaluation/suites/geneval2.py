"""GenEval 2: objects, attributes, numbers, positions and verbs, scored by Soft-TIFA; its data may not be sold.

Source: Kamath et al. 2025 (arXiv 2512.16853); formats: its repository.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.answerers import YES
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Results, Rows
from llmdiff.evaluation.suites.formats import json_lines
from llmdiff.evaluation.suites.questions import Question, QuestionScorer, questions_of, sum_answers
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import parse_json, read_text, write_whole

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class GenEval2Scorer(QuestionScorer):
    """Soft-TIFA: the geometric mean of the probabilities of the right answers to a picture's questions.

    The published scorer asks Qwen3-VL-8B-Instruct; this one asks any model that answers with words.
    """

    name = "geneval2"
    soft = True

    @staticmethod
    def combine(scores: NDArray[np.float64]) -> float:
        """Return the geometric mean; 0 if any score is 0."""
        return float(np.exp(np.log(scores).mean())) if scores.all() else 0.0


class GenEval2(Benchmark):
    """GenEval 2, read from `geneval2_data.jsonl`. The tag of a prompt is its number of atoms."""

    name, title, scorer = GenEval2Scorer.name, "GenEval 2", GenEval2Scorer

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of `geneval2_data.jsonl`, or of its folder."""
        file = path / "geneval2_data.jsonl" if path.is_dir() else path
        return json_lines(file, "GenEval 2's geneval2_data.jsonl", _row), [file]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return PROMPT_NUMBER.png."""
        return f"{row.id}_{number}.png"

    def side_files(self, rows: Rows, system: str) -> Mapping[str, str]:
        """Return the path of every prompt's picture."""
        paths = {row.prompt: self.picture_path(row, 0, 1, system) for row in rows}
        return {"image_paths.json": json.dumps(paths, indent=1)}

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return Soft-TIFA by prompt (GM, geometric mean) and by atom (AM), and the scores of every skill."""
        return {
            "Soft-TIFA GM": (sum(one["score"] for one in results), len(results)),
            "Soft-TIFA AM": (sum(float(np.mean(one["answers"])) for one in results), len(results)),
            **sum_answers(row, results, lambda one: [one.category]),
        }

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write score_lists.json: the scores of the questions about every prompt's first picture."""
        write_whole(folder / "score_lists.json", json.dumps([some[0]["answers"] for some in results]))

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the scores of the published scorer's output file; it scores one picture of each prompt."""
        lists = parse_json(read_text(place))
        if not isinstance(lists, list) or len(lists) <= max(int(row.id) for row in rows):
            raise ConfigError(
                f"official scores {place}: expected a list of the scores of every prompt, in {self.title}'s order"
            )
        found = []
        for row in rows:
            answers = lists[int(row.id)]
            if len(answers) != len(questions_of(row)):
                raise ConfigError(
                    f"official scores {place}: has {len(answers)} scores of prompt {row.id}, expected "
                    f"{len(questions_of(row))}: run the published scorer with --method soft_tifa_gm"
                )
            score = GenEval2Scorer.combine(np.array(answers, dtype=np.float64))
            found.append((row.id, 0, {"score": score, "answers": answers}))
        return OfficialScores(results=self.by_prompt(found, rows, 1, place))


def _row(number: int, given: Any) -> SuitePrompt:
    questions = [
        Question(text=question, category=skill, answers=_forms(question, answer))
        for (question, answer), skill in zip(given["vqa_list"], given["skills"], strict=True)
    ]
    tags = (f"{int(given['atom_count'])} atoms",)
    return SuitePrompt(
        id=f"{number:05d}", prompt=given["prompt"], tags=tags, metadata={"questions": questions}
    )


def _forms(question: str, answer: str) -> tuple[str, ...]:
    """Return the spellings that count as this answer, as in the published scorer."""
    if not question.startswith("How many"):
        if answer.lower() != "yes":
            raise ValueError(f"answer {answer!r} to {question!r}, expected yes")
        return YES
    word = answer.lower()
    forms = [word, word.capitalize()]
    if word in _NUMBERS:
        forms.append(str(_NUMBERS.index(word) + 1))
    return tuple(space + form for form in forms for space in ("", " "))
