"""DPG-Bench: dense prompts, each with yes-or-no questions that depend on one another.

Source: Hu et al. 2024 (ELLA, arXiv 2403.05135), section 4; formats: dpg_bench/ of the ELLA repository.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.questions import Answerer, BlipAnswerer
from llmdiff.evaluation.suites.suite import (
    OfficialScores,
    PromptSuite,
    SuitePrompt,
    scores_of_prompts,
    suite_of,
)
from llmdiff.files import read_text, text_lines, whole_file, write_whole

NAME = "dpg-bench"
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
    table = csv.DictReader(io.StringIO(read_text(file), newline=""))
    missing = [column for column in _COLUMNS if column not in (table.fieldnames or ())]
    if missing:
        raise ConfigError(f"suite {file}: no column {missing[0]!r}, expected DPG-Bench's dpg_bench.csv")
    prompts: dict[str, str] = {}
    questions: dict[str, list[dict[str, Any]]] = {}
    for line in table:
        item = line["item_id"]
        prompts.setdefault(item, line["text"].strip())
        try:
            after = [int(part) for part in line["dependency"].split(",")]
            number = int(line["proposition_id"])
        except ValueError as error:
            raise ConfigError(f"suite {file}, line {table.line_num}: {error}") from error
        questions.setdefault(item, []).append(
            {
                "id": number,
                "after": [parent for parent in after if parent != 0],
                "question": line["question_natural_language"],
                "category": line["tuple"].split("(")[0].strip(),
            }
        )
    rows = [
        SuitePrompt(id=item, prompt=text, facts={"questions": questions[item]})
        for item, text in prompts.items()
    ]
    return suite_of(NAME, rows, [file], images_per_prompt=IMAGES_PER_PROMPT, benchmark="DPG-Bench")


def score_of_answers(questions: Sequence[Mapping[str, Any]], answers: Mapping[int, bool]) -> dict[int, float]:
    """Return every question's score: 1 for yes, but 0 if a question that it depends on scored 0.

    Source: Cho et al. 2024 (Davidsonian Scene Graph, arXiv 2310.18235), section 3, as DPG-Bench uses it.
    """
    scores = {number: float(yes) for number, yes in answers.items()}
    for question in questions:
        if any(scores.get(parent, 1.0) == 0 for parent in question["after"]):
            scores[question["id"]] = 0.0
    return scores


class DPGScorer:
    """The mean score of a picture's questions, answered by a VQA model.

    The published scorer answers with mPLUG-large and skips the file's first question; its category figures count one
    picture in four and ignore what questions build on. This one counts every question of every picture.
    """

    name = NAME

    def __init__(self, answerer: Answerer) -> None:
        self.answerer, self.model_id = answerer, answerer.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with the BLIP of a folder or Hub id."""
        return cls(BlipAnswerer.from_pretrained(name_or_path, device=device))

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the score of every picture, its answers, and the mean score of each category of questions."""
        judged = []
        for picture, row in zip(pictures, rows, strict=True):
            questions = row.facts["questions"]
            yes = self.answerer.yes(
                np.repeat(picture[None], len(questions), axis=0), [one["question"] for one in questions]
            )
            answers = {one["id"]: bool(p > 0.5) for one, p in zip(questions, yes, strict=True)}
            scores = score_of_answers(questions, answers)
            groups: dict[str, list[float]] = {}
            for one in questions:
                groups.setdefault(one["category"].split("-")[0].strip(), []).append(scores[one["id"]])
            judged.append(
                {
                    "score": float(np.mean([scores[one["id"]] for one in questions])),
                    "parts": {group: float(np.mean(values)) for group, values in groups.items()},
                    "answers": {str(number): answer for number, answer in answers.items()},
                }
            )
        return judged

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """0, in every category that the prompt is asked about."""
        groups = [one["category"].split("-")[0].strip() for one in row.facts["questions"]]
        return {"score": 0.0, "parts": dict.fromkeys(groups, 0.0)}


def export_pictures(rows: Sequence[SuitePrompt], pictures: Sequence[Pictures], folder: Path) -> None:
    """Write ITEM.png for every prompt, its first four pictures two by two, as the published scorer reads them."""
    for row, images in zip(rows, pictures, strict=True):
        height, width = images.shape[1:3]
        sheet = np.zeros((2 * height, 2 * width, 3), dtype=np.uint8)
        for number, image in enumerate(images[:4]):
            top, left = height * (number // 2), width * (number % 2)
            sheet[top : top + height, left : left + width] = image
        with whole_file(folder / f"{row.id}.png") as partial:
            Image.fromarray(sheet).save(partial, format="PNG")


def write_scores(
    rows: Sequence[SuitePrompt], judged: Sequence[Sequence[Mapping[str, Any]]], file: Path
) -> None:
    """Write a line per prompt in the published format: PATH.png, the score of each picture, their mean."""
    lines = []
    for row, found in zip(rows, judged, strict=True):
        scores = [float(one["score"]) for one in found]
        lines.append(", ".join([f"{row.id}.png", *map(str, scores), str(sum(scores) / len(scores))]))
    write_whole(file, "\n".join(lines) + "\n")


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the score of every prompt by its name, from a results file that the published scorer wrote.

    Raises:
        ConfigError: no line in it is such a score, or none is of these prompts.
    """
    found = {}
    for line in text_lines(read_text(file)):
        parts = line.rsplit(".png, ", 1)
        if len(parts) == 2 and re.fullmatch(r"[-+.e\d]+(, [-+.e\d]+)*", parts[1].strip()):
            found[Path(parts[0]).name] = float(parts[1].split(", ")[-1])
    if not found:
        raise ConfigError(
            f"official scores {file}: no line 'NAME.png, score, ..., mean', expected DPG-Bench's results"
        )
    return scores_of_prompts(found, rows, file)
