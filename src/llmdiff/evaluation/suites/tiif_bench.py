"""TIIF-Bench: instructions of 36 types in nine groups, each in a short and a long wording, with yes-or-no questions.

Source: Wei et al. 2025 (arXiv 2506.02161); formats: data/ and eval/ of its repository.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Ratios, Results, Rows
from llmdiff.evaluation.suites.formats import json_lines
from llmdiff.evaluation.suites.questions import Question, QuestionScorer, questions_of, sum_answers
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import read_json, write_whole

_LENGTHS = ("short", "long")
_PROMPTS, _EVAL = "_prompts", "_eval_prompts"
_EXPECTED = "TIIF-Bench's lines of type, short_description and long_description, or of its questions"
# What the parts of a type, such as action+color, test.
_TESTED = {
    **dict.fromkeys(("color", "shape", "texture"), "Attribute"),
    **dict.fromkeys(("2d", "3d", "action", "2d_spatial_relation", "3d_spatial_relation"), "Relation"),
    **dict.fromkeys(("numeracy", "negation", "differentiation", "comparison"), "Reasoning"),
    "text": "Text Generation",
    "style": "Style Control",
    "real_world": "Real World",
}
_BASIC = ("Attribute", "Relation", "Reasoning")


class TIIFScorer(QuestionScorer):
    """The share of a picture's yes-or-no questions with the right answer.

    The published scorer shows GPT-4o all questions of a picture at once.
    """

    name = "tiif-bench"


class TIIFBench(Benchmark):
    """TIIF-Bench, read from `testmini_prompts`, or from the folder that holds it: every prompt short and long.

    The questions are those of `testmini_eval_prompts` beside it; the full set, `test_prompts`, has none. The tags of
    a prompt are its type and its length.
    """

    name, title, scorer = TIIFScorer.name, "TIIF-Bench", TIIFScorer

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of a folder."""
        folder = path / "testmini_prompts" if (path / "testmini_prompts").is_dir() else path
        files = sorted(folder.glob(f"*{_PROMPTS}.jsonl"))
        asked = folder.with_name(folder.name.removesuffix(_PROMPTS) + _EVAL)
        others = [
            asked / f"{file.stem.removesuffix(_PROMPTS)}{_EVAL}.jsonl" for file in files if asked.is_dir()
        ]
        rows: list[SuitePrompt] = []
        for number, file in enumerate(files):
            questions_of_line = json_lines(others[number], _EXPECTED, _questions) if others else []
            pairs = json_lines(file, _EXPECTED, partial(_pair, questions_of_line))
            if others and len(questions_of_line) != len(pairs):
                raise ConfigError(
                    f"suite {others[number]}: has {len(questions_of_line)} lines, expected {len(pairs)} as {file.name}"
                )
            rows += [row for pair in pairs for row in pair]
        return rows, [*files, *others]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return TYPE/SYSTEM/LENGTH_description/INDEX.png."""
        kind, length = row.tags
        suffix = f"_{number}" if number else ""
        return f"{kind}/{system}/{length}_description/{row.metadata['index']}{suffix}.png"

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return the answers to the questions, by length and type."""
        return sum_answers(row, results, lambda one: [f"{row.tags[1]}|{one.category}"])

    def combine(self, ratios: Ratios, rows: Rows) -> Ratios:
        """Return by length: for each group the mean over its types, and overall the mean over groups."""
        figures: dict[str, NDArray[np.float64]] = {}
        for length in _LENGTHS:
            groups: dict[str, list[NDArray[np.float64]]] = {}
            for name, ratio in ratios.items():
                its_length, _, kind = name.partition("|")
                if its_length == length:
                    groups.setdefault(_group(kind), []).append(ratio)
            means = {group: _mean(some) for group, some in groups.items()}
            wholes = {
                "basic": [ratio for group in _BASIC for ratio in groups.get(group, [])],
                "advanced": [
                    ratio
                    for group in groups
                    if group not in (*_BASIC, "Real World")
                    for ratio in groups[group]
                ],
                "overall": list(means.values()),
            }
            means |= {name: _mean(some) for name, some in wholes.items() if some}
            figures |= {f"{length}: {name}": ratio for name, ratio in means.items()}
        return figures

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write SYSTEM/TYPE/LENGTH/NUMBER.json with the wanted and the given answers about every first picture."""
        for row, some in zip(rows, results, strict=True):
            questions = questions_of(row)
            if questions:
                wanted = [one.answers[0] for one in questions]
                given = [
                    answer if right else {"yes": "no", "no": "yes"}[answer]
                    for answer, right in zip(wanted, some[0]["answers"], strict=True)
                ]
                record = {
                    "attribute": row.tags[0],
                    "questions": [one.text for one in questions],
                    "gt_answers": wanted,
                    "model_pred": given,
                }
                write_whole(_answers_file(folder / system, row), json.dumps(record))

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the answers in the published scorer's folder of a model, TYPE/LENGTH/NUMBER.json.

        It scores one picture of each prompt that has questions.
        """
        asked = [row for row in rows if questions_of(row)]
        found = []
        for row in asked:
            file = _answers_file(place, row)
            if not file.exists():
                continue
            given = read_json(file)
            try:
                pairs = list(zip(given["gt_answers"], given["model_pred"], strict=True))
                answers = [float(one.strip().lower() == other.strip().lower()) for one, other in pairs]
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"official scores {file}: {error}, expected gt_answers and model_pred"
                ) from error
            wanted = [one.text for one in questions_of(row)]
            if [one.strip() for one in given.get("questions", wanted)] != wanted or len(answers) != len(
                wanted
            ):
                raise ConfigError(
                    f"official scores {file}: answers other questions than those of line {row.metadata['index'] + 1} "
                    f"of {row.tags[0]}, expected results for this order of prompts"
                )
            found.append((row.id, 0, {"score": float(np.mean(answers)), "answers": answers}))
        return OfficialScores(results=self.by_prompt(found, asked or rows, 1, place))


def _pair(
    questions_of_line: Sequence[list[Question]], index: int, given: Mapping[str, str]
) -> list[SuitePrompt]:
    """Return a prompt's short and long wording."""
    kind = given["type"]
    if any(part not in _TESTED for part in kind.split("+")):
        raise ValueError(f"unknown type {kind!r}")
    metadata = {
        "index": index,
        "questions": questions_of_line[index] if index < len(questions_of_line) else [],
    }
    return [
        SuitePrompt(
            id=f"{kind}-{index}-{length}",
            prompt=given[f"{length}_description"],
            tags=(kind, length),
            metadata=metadata,
        )
        for length in _LENGTHS
    ]


def _questions(_: int, given: Any) -> list[Question]:
    pairs = zip(given["yn_question_list"], given["yn_answer_list"], strict=True)
    return [
        Question(text=question.strip(), category=given["type"], answers=(answer.strip().lower(),))
        for question, answer in pairs
    ]


def _answers_file(folder: Path, row: SuitePrompt) -> Path:
    return folder / row.tags[0] / row.tags[1] / f"{row.metadata['index']}.json"


def _group(kind: str) -> str:
    tested = {_TESTED[part] for part in kind.split("+")}
    return "+".join(sorted(tested, key=list(dict.fromkeys(_TESTED.values())).index))


def _mean(ratios: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    # A resample may have no prompt of a type: take the mean over the others.
    known = np.stack([~np.isnan(one) for one in ratios])
    total = np.stack([np.nan_to_num(one) for one in ratios]).sum(0)
    mean: NDArray[np.float64] = np.divide(
        total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0)
    )
    return mean
