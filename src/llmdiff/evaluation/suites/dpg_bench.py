"""DPG-Bench: dense prompts, each with yes-or-no questions that depend on one another.

Source: Hu et al. 2024 (ELLA, arXiv 2403.05135), section 4; formats: dpg_bench/ of the ELLA repository.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Results, Rows
from llmdiff.evaluation.suites.formats import csv_rows
from llmdiff.evaluation.suites.questions import (
    Question,
    QuestionScorer,
    dependent_scores,
    questions_of,
    sum_answers,
)
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import read_text, text_lines, write_whole

_COLUMNS = (
    "item_id", "text", "proposition_id", "dependency", "category_broad", "tuple", "question_natural_language",
)  # fmt: skip


class DPGScorer(QuestionScorer):
    """The mean score of a picture's questions; a question scores 0 if one that it depends on does.

    The published scorer answers with mPLUG-large and skips the file's first question. This one counts every question.
    """

    name = "dpg-bench"

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the answers, with 0 for every question that depends on a question with score 0."""
        return dependent_scores(questions, answers, chained=True)


class DPGBench(Benchmark):
    """DPG-Bench, read from `dpg_bench.csv`."""

    name, title, scorer = DPGScorer.name, "DPG-Bench", DPGScorer
    images_per_prompt = 4
    sheet = True

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of `dpg_bench.csv`, or of its folder."""
        file = path / "dpg_bench.csv" if path.is_dir() else path
        texts: dict[str, str] = {}
        questions: dict[str, list[Question]] = {}

        def add(_: int, line: Mapping[str, str]) -> None:
            parents = [int(part) for part in line["dependency"].split(",")]
            texts.setdefault(line["item_id"], line["text"].strip())
            questions.setdefault(line["item_id"], []).append(
                Question(
                    text=line["question_natural_language"],
                    category=line["tuple"].split("(")[0].strip(),
                    id=int(line["proposition_id"]),
                    after=tuple(parent for parent in parents if parent != 0),
                )
            )

        csv_rows(file, "DPG-Bench's dpg_bench.csv", _COLUMNS, add)
        rows = [
            SuitePrompt(id=item, prompt=text, metadata={"questions": questions[item], "first": not number})
            for number, (item, text) in enumerate(texts.items())
        ]
        return rows, [file]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return PROMPT.png."""
        return f"{row.id}.png"

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return the answers about the last picture by category, without dependencies, as published."""
        return sum_answers(row, results[-1:], lambda one: dict.fromkeys((one.group, one.category)))

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write a line per prompt: NAME.png, the score of each picture, their mean."""
        lines = []
        for row, found in zip(rows, results, strict=True):
            scores = [float(one["score"]) for one in found]
            lines.append(", ".join([f"{row.id}.png", *map(str, scores), str(sum(scores) / len(scores))]))
        write_whole(folder / "dpg-bench_results.txt", "\n".join(lines) + "\n")

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the scores of every picture, and the stated figures, of the published scorer's results file.

        The published scorer drops the first question of `dpg_bench.csv`. If other questions of that prompt depend on
        it, the scorer fails on the prompt, which is left out here too.
        """
        stated: dict[str, float] = {}
        found: list[tuple[str, int, dict[str, float]]] = []
        for line in text_lines(read_text(place)):
            name, _, values = line.rpartition(".png, ")
            if name and re.fullmatch(r"[-+.e\d]+(, [-+.e\d]+)*", values.strip()):
                *scores, _ = map(float, values.split(", "))
                if len(scores) != images_per_prompt:
                    raise ConfigError(
                        f"official scores {place}: has {len(scores)} scores of {Path(name).name!r}, expected "
                        f"{images_per_prompt}: run the published scorer with --pic-num {images_per_prompt}"
                    )
                found += [(Path(name).name, number, {"score": one}) for number, one in enumerate(scores)]
            elif summary := re.fullmatch(r"\t?([^:]+): ([.\d]+)", line.rstrip()):
                stated[summary[1]] = float(summary[2])
        if not found:
            raise ConfigError(
                f"official scores {place}: no line 'NAME.png, score, ..., mean', expected DPG-Bench's results"
            )
        results = self.by_prompt(found, rows, images_per_prompt, place)
        for row in rows:
            if _published_scorer_fails(row) and results[row.id] == [None] * images_per_prompt:
                del results[row.id]
        return OfficialScores(results=results, stated=stated)


def _published_scorer_fails(row: SuitePrompt) -> bool:
    first, *others = questions_of(row)
    return bool(row.metadata["first"]) and any(first.id in one.after for one in others)
