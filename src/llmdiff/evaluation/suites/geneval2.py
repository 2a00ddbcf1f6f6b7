"""GenEval 2: objects, attributes, numbers, positions and verbs, scored by Soft-TIFA; its data may not be sold.

Source: Kamath et al. 2025 (arXiv 2512.16853); formats: its repository.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.formats import json_lines
from llmdiff.evaluation.suites.questions import (
    Question,
    QuestionScorer,
    pooled_figures,
    questions_of,
    tally_answers,
)
from llmdiff.evaluation.suites.suite import (
    Benchmark,
    OfficialScores,
    PromptSuite,
    Results,
    SuitePrompt,
    results_by_prompt,
    suite_of,
)
from llmdiff.files import parse_json, read_text, write_whole

NAME, _TITLE = "geneval2", "GenEval 2"
_YES = ("yes", "Yes", " yes", " Yes")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def read_geneval2(path: Path) -> PromptSuite:
    """Return the suite of `geneval2_data.jsonl`, or of its folder; one picture each, tagged by the number of atoms.

    Raises:
        InputFileError: the file is missing.
        ConfigError: a line without prompt, atom_count, vqa_list and skills, or with an unknown answer.
    """
    file = path / "geneval2_data.jsonl" if path.is_dir() else path
    rows = json_lines(file, f"{_TITLE}'s geneval2_data.jsonl", _row)
    return suite_of(NAME, rows, [file], benchmark=_TITLE)


def _row(number: int, given: Any) -> SuitePrompt:
    questions = [
        Question(text=question, category=skill, answers=_forms(question, answer))
        for (question, answer), skill in zip(given["vqa_list"], given["skills"], strict=True)
    ]
    return SuitePrompt(
        id=f"{number:05d}",
        prompt=given["prompt"],
        tags=(f"{int(given['atom_count'])} atoms",),
        facts={"questions": questions},
    )


def _forms(question: str, answer: str) -> tuple[str, ...]:
    """Return the forms in which an answer counts, as the published scorer does."""
    if not question.startswith("How many"):
        if answer.lower() != "yes":
            raise ValueError(f"answer {answer!r} to {question!r}, expected yes")
        return _YES
    word = answer.lower()
    forms = [word, word.capitalize()]
    if word in _NUMBERS:
        forms.append(str(_NUMBERS.index(word) + 1))
    return tuple(space + form for form in forms for space in ("", " "))


class GenEval2Scorer(QuestionScorer):
    """Soft-TIFA: the geometric mean over a picture's questions of how probable the right answer is.

    The published scorer asks Qwen3-VL-8B-Instruct; this one asks any model that answers with words.
    """

    name = NAME
    soft = True

    @staticmethod
    def combine(scores: NDArray[np.float64]) -> float:
        """Return the geometric mean; 0 if any score is 0."""
        return float(np.exp(np.log(scores).mean())) if scores.all() else 0.0


def geneval2_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return Soft-TIFA by prompt (GM, the geometric mean) and by atom (AM), and the mean over questions of a skill."""
    return pooled_figures(
        [
            {
                "Soft-TIFA GM": (sum(one["score"] for one in some), len(some)),
                "Soft-TIFA AM": (sum(float(np.mean(one["answers"])) for one in some), len(some)),
                **tally_answers(row, some, lambda one: [one.category]),
            }
            for row, some in zip(rows, results, strict=True)
        ]
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write score_lists.json: for every prompt the scores of its questions, about its first picture."""
    write_whole(folder / "score_lists.json", json.dumps([some[0]["answers"] for some in results]))


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the scores of the published scorer's output file; it scores one picture of each prompt.

    Raises:
        ConfigError: it has no list of scores for every prompt, or not one of every question.
    """
    lists = parse_json(read_text(file))
    if not isinstance(lists, list) or len(lists) <= max(int(row.id) for row in rows):
        raise ConfigError(
            f"official scores {file}: expected a list of the scores of every prompt, in {_TITLE}'s order"
        )
    found = []
    for row in rows:
        answers = lists[int(row.id)]
        if len(answers) != len(questions_of(row)):
            raise ConfigError(
                f"official scores {file}: has {len(answers)} scores of prompt {row.id}, expected "
                f"{len(questions_of(row))}: run the published scorer with --method soft_tifa_gm"
            )
        scores = np.array(answers, dtype=np.float64)
        found.append((row.id, 0, {"score": GenEval2Scorer.combine(scores), "answers": answers}))
    return OfficialScores(results=results_by_prompt(found, rows, 1, file))


def _picture_path(row: SuitePrompt, number: int, count: int, system: str) -> str:
    return f"{row.id}_{number}.png"


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_geneval2,
    scorer=GenEval2Scorer,
    picture_path=_picture_path,
    side_files=lambda rows, system: {
        "image_paths.json": json.dumps(
            {row.prompt: _picture_path(row, 0, 1, system) for row in rows}, indent=1
        )
    },
    write_scores=write_scores,
    read_scores=read_scores,
    figures=geneval2_figures,
)
