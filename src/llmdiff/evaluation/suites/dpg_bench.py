"""DPG-Bench: dense prompts, each with yes-or-no questions that depend on one another.

Source: Hu et al. 2024 (ELLA, arXiv 2403.05135), section 4; formats: dpg_bench/ of the ELLA repository.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.formats import csv_rows
from llmdiff.evaluation.suites.questions import (
    Question,
    QuestionScorer,
    dependent_scores,
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
from llmdiff.files import read_text, text_lines, write_whole

NAME, _TITLE = "dpg-bench", "DPG-Bench"
_COLUMNS = (
    "item_id", "text", "proposition_id", "dependency", "category_broad", "tuple", "question_natural_language",
)  # fmt: skip
IMAGES_PER_PROMPT = 4


def read_dpg_bench(path: Path) -> PromptSuite:
    """Return the suite of `dpg_bench.csv`, or of a folder that holds it; four pictures of each prompt, as published.

    Raises:
        InputFileError: the file is missing.
        ConfigError: a column is missing.
    """
    file = path / "dpg_bench.csv" if path.is_dir() else path
    prompts: dict[str, str] = {}
    questions: dict[str, list[Question]] = {}

    def add(_: int, line: Mapping[str, str]) -> None:
        after = [int(part) for part in line["dependency"].split(",")]
        prompts.setdefault(line["item_id"], line["text"].strip())
        questions.setdefault(line["item_id"], []).append(
            Question(
                text=line["question_natural_language"],
                category=line["tuple"].split("(")[0].strip(),
                id=int(line["proposition_id"]),
                after=tuple(parent for parent in after if parent != 0),
            )
        )

    csv_rows(file, f"{_TITLE}'s dpg_bench.csv", _COLUMNS, add)
    rows = [
        SuitePrompt(id=item, prompt=text, facts={"questions": questions[item], "first": not number})
        for number, (item, text) in enumerate(prompts.items())
    ]
    return suite_of(NAME, rows, [file], images_per_prompt=IMAGES_PER_PROMPT, benchmark=_TITLE)


class DPGScorer(QuestionScorer):
    """The mean score of a picture's questions; a question counts 0 if one that it depends on does.

    The published scorer answers with mPLUG-large and skips the file's first question. This one counts every question.
    """

    name = NAME

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the answers, with 0 for what depends on a question that scored 0."""
        return dependent_scores(questions, answers, chained=True)


def dpg_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return the figures of categories as published: of each prompt's last picture, without dependencies."""
    return pooled_figures(
        [
            tally_answers(row, some[-1:], lambda one: dict.fromkeys((one.group, one.category)))
            for row, some in zip(rows, results, strict=True)
        ]
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write a line per prompt in the published format: NAME.png, the score of each picture, their mean."""
    lines = []
    for row, found in zip(rows, results, strict=True):
        scores = [float(one["score"]) for one in found]
        lines.append(", ".join([f"{row.id}.png", *map(str, scores), str(sum(scores) / len(scores))]))
    write_whole(folder / "dpg-bench_results.txt", "\n".join(lines) + "\n")


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the scores of every prompt's pictures, and the stated figures, of the published scorer's results file.

    The published scorer drops the first question of `dpg_bench.csv` and then fails on that question's prompt, if others
    of its questions depend on it: such a prompt is left out here too.

    Raises:
        ConfigError: no line in it is such a score, or none is of these prompts, or the numbers of pictures differ.
    """
    stated: dict[str, float] = {}
    found: list[tuple[str, int, dict[str, float]]] = []
    for line in text_lines(read_text(file)):
        name, _, values = line.rpartition(".png, ")
        if name and re.fullmatch(r"[-+.e\d]+(, [-+.e\d]+)*", values.strip()):
            *scores, _ = map(float, values.split(", "))
            if len(scores) != images_per_prompt:
                raise ConfigError(
                    f"official scores {file}: has {len(scores)} scores of {Path(name).name!r}, expected "
                    f"{images_per_prompt}: run the published scorer with --pic-num {images_per_prompt}"
                )
            found += [(Path(name).name, number, {"score": one}) for number, one in enumerate(scores)]
        elif summary := re.fullmatch(r"\t?([^:]+): ([.\d]+)", line.rstrip()):
            stated[summary[1]] = float(summary[2])
    if not found:
        raise ConfigError(
            f"official scores {file}: no line 'NAME.png, score, ..., mean', expected DPG-Bench's results"
        )
    results = results_by_prompt(found, rows, images_per_prompt, file)
    for row in rows:
        if _published_scorer_fails(row) and results[row.id] == [None] * images_per_prompt:
            del results[row.id]
    return OfficialScores(results=results, stated=stated)


def _published_scorer_fails(row: SuitePrompt) -> bool:
    first, *others = questions_of(row)
    return bool(row.facts["first"]) and any(first.id in one.after for one in others)


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_dpg_bench,
    scorer=DPGScorer,
    picture_path=lambda row, number, count, system: f"{row.id}.png",
    sheet=True,
    write_scores=write_scores,
    read_scores=read_scores,
    figures=dpg_figures,
)
