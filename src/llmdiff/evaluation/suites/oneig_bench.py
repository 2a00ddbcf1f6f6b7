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
from llmdiff.evaluation.suites.answerers import TextReader
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Ratios, Results, Rows
from llmdiff.evaluation.suites.formats import csv_rows
from llmdiff.evaluation.suites.questions import Question, QuestionScorer, dependent_scores
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.evaluation.suites.text_accuracy import edit_distance, has_chinese, matches, normalised
from llmdiff.files import parse_json, read_json, write_whole

# The folders of the published categories.
_FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
# The folders that each published scorer scores.
_SCORED = {
    "alignment": ("anime", "human", "object", "multilingualism"),
    "text": ("text",),
    "reasoning": ("reasoning",),
}
_MOST_EDITS = {"en": 100, "cn": 50}


class OneIGScorer(QuestionScorer):
    """Alignment: the mean score of a picture's questions, 0 for one whose parent is answered no; text: words found.

    Pictures with text are scored by models that read text (chat models). Reasoning, style and diversity are left to
    the published scorer, which uses Qwen2.5-VL-7B-Instruct, LLM2CLIP and others.
    """

    name = "oneig-bench"

    @staticmethod
    def scores(questions: Sequence[Question], answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the answers, with 0 for every question whose parent has the answer no."""
        return dependent_scores(questions, answers, chained=False)

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the result of every picture; empty for prompts that this scorer does not score."""
        judged = super().judge(pictures, rows)
        if isinstance(self.answerer, TextReader):
            for number, row in enumerate(rows):
                if "text" in row.metadata:
                    (text,) = self.answerer.read(pictures[number][None])
                    judged[number] = text_result(row, text)
        return judged

    @classmethod
    def failed(cls, row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture that could not be drawn: no right answer, no text."""
        return text_result(row, "") if "text" in row.metadata else super().failed(row)


def text_result(row: SuitePrompt, text: str) -> dict[str, Any]:
    """Return the result of a picture in which this text was read."""
    wanted, found = (normalised(one, spaces=not has_chinese(one)) for one in (row.metadata["text"], text))
    right, count = matches(wanted, found, characters=has_chinese(wanted))
    edits = edit_distance(wanted, found)
    scores = {"score": right / count, "right": right, "count": count}
    return {**scores, "edits": edits, "complete": float(not edits)}


class OneIGBench(Benchmark):
    """OneIG-Bench, read from `OneIG-Bench.csv` (or its folder) or `OneIG-Bench-ZH.csv` in the repository's folder.

    `scripts/alignment/Q_D/` and `scripts/text/` have to be beside the prompts. The tag of a prompt is its folder:
    anime, human, object, text, reasoning or, in Chinese, multilingualism.
    """

    name, title, scorer = OneIGScorer.name, "OneIG-Bench", OneIGScorer
    images_per_prompt = 4
    sheet = True
    failed_level = 1

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of a file or folder."""
        file = path / "OneIG-Bench.csv" if path.is_dir() else path
        language, ending = ("cn", "_zh") if file.stem.endswith("-ZH") else ("en", "")
        scripts = file.parent / "scripts"
        texts_file = scripts / "text" / f"text_content{ending}.csv"
        columns = ("id", "text_content")
        texts = dict(
            csv_rows(
                texts_file,
                "OneIG-Bench's text contents",
                columns,
                lambda _, line: (line["id"], line["text_content"]),
            )
        )
        question_files: dict[str, Path] = {}
        questions: dict[str, dict[str, Any]] = {}

        def row(_: int, line: Mapping[str, str]) -> SuitePrompt:
            folder, number = _FOLDERS[line["category"]], line["id"]
            metadata: dict[str, Any] = {"number": number, "language": language}
            if folder == "text":
                metadata["text"] = texts[number]
                if not normalised(texts[number], spaces=True):
                    raise ValueError(f"text {texts[number]!r} has no letters or digits to find")
            elif folder in _SCORED["alignment"]:
                if folder not in questions:
                    question_files[folder] = scripts / "alignment" / "Q_D" / f"{folder}{ending}.json"
                    questions[folder] = read_json(question_files[folder])
                metadata["questions"] = _questions(questions[folder][number], folder)
            prompt = line[f"prompt_{language}"]
            return SuitePrompt(id=f"{folder}_{number}", prompt=prompt, tags=(folder,), metadata=metadata)

        rows = csv_rows(file, "OneIG-Bench's table of prompts", ("category", "id", f"prompt_{language}"), row)
        return rows, [file, texts_file, *question_files.values()]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return FOLDER/SYSTEM/ID.png."""
        return f"{row.tags[0]}/{system}/{row.metadata['number']}.png"

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return the alignment or reasoning score; for text the edits (ED), complete texts (CR) and words (WAC)."""
        if row.tags[0] != "text":
            kind = "reasoning" if row.tags[0] == "reasoning" else "alignment"
            return {kind: (float(np.mean([one["score"] for one in results])), 1)}
        return {
            "ED": (sum(one["edits"] for one in results), len(results)),
            "CR": (sum(one["complete"] for one in results), len(results)),
            "WAC": (sum(one["right"] for one in results), sum(one["count"] for one in results)),
        }

    def combine(self, ratios: Ratios, rows: Rows) -> Ratios:
        """Return the ratios and the text score.

        text score = 1 - min(M, ED) (1 - CR) (1 - WAC) / M,    M = 100 in English and 50 in Chinese
        """
        if "ED" not in ratios:
            return ratios
        most = _MOST_EDITS[rows[0].metadata["language"]]
        error = np.minimum(most, ratios["ED"]) * (1 - ratios["CR"]) * (1 - ratios["WAC"]) / most
        return {**ratios, "text score": 1 - error}

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write alignment_prompt_score_EN.csv and text_prompt_score_EN.csv (or ZH): means over a prompt's pictures."""
        mode = {"en": "EN", "cn": "ZH"}[rows[0].metadata["language"]]
        for kind in ("alignment", "text"):
            file = io.StringIO()
            table = csv.writer(file)
            table.writerow(["", system])
            for row, some in zip(rows, results, strict=True):
                if row.tags[0] in _SCORED[kind] and "score" in some[0]:
                    table.writerow([_published_id(row, kind), _published_value(some, kind)])
            write_whole(folder / f"{kind}_prompt_score_{mode}.csv", file.getvalue())

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the means over every prompt's pictures that the published scorer wrote.

        `place`: alignment_prompt_score_*.csv, text_prompt_score_*.csv or reasoning_prompt_score_*.csv of one model, or
        a folder with some of these. Categories without a file are not scored.
        """
        files = list(place.glob("*_prompt_score_*.csv")) if place.is_dir() else [place]
        results: dict[str, Sequence[Mapping[str, Any] | None]] = {}
        for kind, folders in _SCORED.items():
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
                    for id, value in csv_rows(
                        of_kind[0], "OneIG-Bench's scores of one model", (), _id_and_value
                    )
                    if value
                ]
                results |= self.by_prompt(found, some, 1, of_kind[0])
        if not results:
            raise ConfigError(
                f"official scores {place}: expected alignment_prompt_score_*.csv, text_prompt_score_*.csv or "
                "reasoning_prompt_score_*.csv, as the published scorer writes"
            )
        return OfficialScores(results=results)


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


def _published_id(row: SuitePrompt, kind: str) -> str:
    return row.id if kind == "alignment" else str(row.metadata["number"])


def _published_value(some: Sequence[Mapping[str, Any]], kind: str) -> str:
    def mean(name: str) -> float:
        return float(np.mean([one[name] for one in some]))

    return str(mean("score") if kind == "alignment" else [mean("edits"), mean("complete"), mean("score")])


def _id_and_value(_: int, line: Mapping[str, str]) -> tuple[str, str]:
    id, *values = line.values()
    if len(values) != 1:
        raise ValueError(f"scores of {len(values)} models")
    return id, values[0]


def _read_value(row: SuitePrompt | None, value: str, kind: str) -> Mapping[str, Any]:
    if kind != "text":
        return {"score": float(value)}
    edits, complete, accuracy = parse_json(value)
    words = text_result(row, "")["count"] if row else 0
    # A mean over the prompt's pictures counts as one picture: sums over prompts then equal those over pictures.
    counts = {"right": accuracy * words, "count": words}
    return {"score": accuracy, **counts, "edits": edits, "complete": complete}
