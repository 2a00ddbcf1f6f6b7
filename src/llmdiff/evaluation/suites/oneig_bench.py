"""OneIG-Bench: objects, portraits, anime, text, knowledge; scored for alignment by questions, and for text.

Source: Chang et al. 2025 (arXiv 2506.07977); formats: scripts/ of its repository.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.answerers import TextReader
from llmdiff.evaluation.suites.formats import csv_rows
from llmdiff.evaluation.suites.questions import (
    Question,
    QuestionScorer,
    Tally,
    dependent_scores,
    pooled_figures,
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
from llmdiff.evaluation.suites.text_accuracy import edit_distance, has_chinese, matches, normalised
from llmdiff.files import parse_json, read_json, write_whole

NAME, _TITLE = "oneig-bench", "OneIG-Bench"
IMAGES_PER_PROMPT = 4
# The published folders of categories, and what asks about their pictures.
_FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
_KINDS = {
    "alignment": ("anime", "human", "object", "multilingualism"),
    "text": ("text",),
    "reasoning": ("reasoning",),
}
_MOST_EDITS = {"en": 100, "cn": 50}


def read_oneig_bench(path: Path) -> PromptSuite:
    """Return the suite of `OneIG-Bench.csv` or `OneIG-Bench-ZH.csv` in the repository's folder; four pictures each.

    A folder stands for `OneIG-Bench.csv` in it. Every prompt's tag is its folder: anime, human, object, text, reasoning
    or, in Chinese, multilingualism.

    Raises:
        InputFileError: a file is missing: `scripts/alignment/Q_D/` and `scripts/text/` have to be beside the prompts.
        ConfigError: a file is not the benchmark's.
    """
    file = path / "OneIG-Bench.csv" if path.is_dir() else path
    language, ending = ("cn", "_zh") if file.stem.endswith("-ZH") else ("en", "")
    scripts = file.parent / "scripts"
    texts_file = scripts / "text" / f"text_content{ending}.csv"
    texts = dict(
        csv_rows(
            texts_file,
            f"{_TITLE}'s text contents",
            ("id", "text_content"),
            lambda _, line: (line["id"], line["text_content"]),
        )
    )
    question_files: dict[str, Path] = {}
    questions: dict[str, dict[str, Any]] = {}

    def row(_: int, line: Mapping[str, str]) -> SuitePrompt:
        folder, number = _FOLDERS[line["category"]], line["id"]
        facts: dict[str, Any] = {"number": number, "language": language}
        if folder == "text":
            facts["text"] = texts[number]
            if not normalised(texts[number], spaces=True):
                raise ValueError(f"text {texts[number]!r} has no letters or digits to find")
        elif folder in _KINDS["alignment"]:
            if folder not in questions:
                question_files[folder] = scripts / "alignment" / "Q_D" / f"{folder}{ending}.json"
                questions[folder] = read_json(question_files[folder])
            facts["questions"] = _questions(questions[folder][number], folder)
        return SuitePrompt(
            id=f"{folder}_{number}", prompt=line[f"prompt_{language}"], tags=(folder,), facts=facts
        )

    rows = csv_rows(file, f"{_TITLE}'s table of prompts", ("category", "id", f"prompt_{language}"), row)
    files = [file, texts_file, *question_files.values()]
    return suite_of(NAME, rows, files, images_per_prompt=IMAGES_PER_PROMPT, benchmark=_TITLE)


def _questions(given: Mapping[str, Any], folder: str) -> list[Question]:
    texts, parents = (
        json.loads(one) if isinstance(one, str) else one for one in (given["question"], given["dependency"])
    )
    return [
        Question(
            text=text,
            category=folder,
            id=int(number),
            after=tuple(int(parent) for parent in parents[number] if int(parent)),
        )
        for number, text in texts.items()
    ]


class OneIGScorer(QuestionScorer):
    """Alignment: the mean score of a picture's questions, 0 for one whose parent is answered no; text: words found.

    Pictures of text are scored by models that read text (chat models); those of the category reasoning, style and
    diversity are left to the published scorer, which asks Qwen2.5-VL-7B-Instruct, LLM2CLIP and others.
    """

    name = NAME

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the answers, with 0 for what depends on a question with the answer no."""
        return dependent_scores(questions, answers, chained=False)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of every picture; empty for prompts that this scorer does not score."""
        judged = super().judge(pictures, rows)
        if isinstance(self.answerer, TextReader):
            for number, row in enumerate(rows):
                if "text" in row.facts:
                    (text,) = self.answerer.read(pictures[number][None])
                    judged[number] = text_result(row, text)
        return judged

    @classmethod
    def failed(cls, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: no question is answered right, no text is there."""
        return text_result(row, "") if "text" in row.facts else super().failed(row)


def text_result(row: SuitePrompt, text: str) -> dict[str, Any]:
    """Return the result of a picture in which this text was read."""
    wanted, found = (normalised(one, spaces=not has_chinese(one)) for one in (row.facts["text"], text))
    right, count = matches(wanted, found, characters=has_chinese(wanted))
    edits = edit_distance(wanted, found)
    return {
        "score": right / count,
        "right": right,
        "count": count,
        "edits": edits,
        "complete": float(not edits),
    }


def oneig_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return the alignment (mean over prompts), the reasoning score, and of text ED, CR, WAC and the text score.

    text score = 1 - min(M, ED) (1 - CR) (1 - WAC) / M,    M = 100 in English and 50 in Chinese
    """
    most = _MOST_EDITS[rows[0].facts["language"]]

    def tally(row: SuitePrompt, some: Sequence[Mapping[str, Any]]) -> Tally:
        if row.tags[0] != "text":
            kind = "reasoning" if row.tags[0] == "reasoning" else "alignment"
            return {kind: (float(np.mean([one["score"] for one in some])), 1)}
        return {
            "ED": (sum(one["edits"] for one in some), len(some)),
            "CR": (sum(one["complete"] for one in some), len(some)),
            "WAC": (sum(one["right"] for one in some), sum(one["count"] for one in some)),
        }

    def with_text_score(ratios: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        if "ED" not in ratios:
            return dict(ratios)
        error = np.minimum(most, ratios["ED"]) * (1 - ratios["CR"]) * (1 - ratios["WAC"]) / most
        return {**ratios, "text score": 1 - error}

    return pooled_figures(
        [tally(row, some) for row, some in zip(rows, results, strict=True)], with_text_score
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write alignment_prompt_score_EN.csv and text_prompt_score_EN.csv (or ZH): means over every prompt's pictures."""
    mode = {"en": "EN", "cn": "ZH"}[rows[0].facts["language"]]
    for kind in ("alignment", "text"):
        file = io.StringIO()
        table = csv.writer(file)
        table.writerow(["", system])
        for row, some in zip(rows, results, strict=True):
            if row.tags[0] in _KINDS[kind] and "score" in some[0]:
                table.writerow([_published_id(row, kind), _published_value(some, kind)])
        write_whole(folder / f"{kind}_prompt_score_{mode}.csv", file.getvalue())


def _published_id(row: SuitePrompt, kind: str) -> str:
    return row.id if kind == "alignment" else str(row.facts["number"])


def _published_value(some: Sequence[Mapping[str, Any]], kind: str) -> str:
    if kind == "alignment":
        return str(float(np.mean([one["score"] for one in some])))
    return str([float(np.mean([one[name] for one in some])) for name in ("edits", "complete", "score")])


def read_scores(place: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the means over every prompt's pictures that the published scorer wrote.

    `place`: alignment_prompt_score_*.csv, text_prompt_score_*.csv or reasoning_prompt_score_*.csv of one model, or a
    folder with some of these. Categories without a file are not scored.

    Raises:
        ConfigError: there is no such file, or two of one kind, or one of several models.
    """
    files = list(place.glob("*_prompt_score_*.csv")) if place.is_dir() else [place]
    results: dict[str, Sequence[Mapping[str, Any] | None]] = {}
    for kind, folders in _KINDS.items():
        of_kind = [file for file in files if file.name.startswith(f"{kind}_prompt_score_")]
        some = [row for row in rows if row.tags[0] in folders]
        if len(of_kind) > 1:
            raise ConfigError(
                f"official scores {place}: has {len(of_kind)} files {kind}_prompt_score_*.csv, expected one"
            )
        if of_kind and some:
            by_id = {_published_id(row, kind): row for row in some}
            found = [
                (by_id[id].id if id in by_id else "", 0, _read_value(by_id.get(id), value, kind))
                for id, value in _table(of_kind[0])
                if value
            ]
            results |= results_by_prompt(found, some, 1, of_kind[0])
    if not results:
        raise ConfigError(
            f"official scores {place}: expected alignment_prompt_score_*.csv, text_prompt_score_*.csv or "
            "reasoning_prompt_score_*.csv, as the published scorer writes"
        )
    return OfficialScores(results=results)


def _table(file: Path) -> list[tuple[str, str]]:
    def pair(_: int, line: Mapping[str, str]) -> tuple[str, str]:
        id, *values = line.values()
        if len(values) != 1:
            raise ValueError(f"scores of {len(values)} models")
        return id, values[0]

    return csv_rows(file, f"{_TITLE}'s scores of the prompts of one model", (), pair)


def _read_value(row: SuitePrompt | None, value: str, kind: str) -> Mapping[str, Any]:
    if kind != "text":
        return {"score": float(value)}
    edits, complete, accuracy = parse_json(value)
    words = text_result(row, "")["count"] if row else 0
    # A mean over the prompt's pictures, as if all were like it: sums over prompts are those over pictures.
    return {
        "score": accuracy,
        "right": accuracy * words,
        "count": words,
        "edits": edits,
        "complete": complete,
    }


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_oneig_bench,
    scorer=OneIGScorer,
    picture_path=lambda row, number, count, system: f"{row.tags[0]}/{system}/{row.facts['number']}.png",
    sheet=True,
    failed_level=1,
    write_scores=write_scores,
    read_scores=read_scores,
    figures=oneig_figures,
)
