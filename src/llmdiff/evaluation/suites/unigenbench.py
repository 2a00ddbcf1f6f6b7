"""UniGenBench++: short and long prompts, English and Chinese, with points to test in ten dimensions.

Source: Wang et al. 2025 (arXiv 2508.20751 and 2510.18701); formats: data/ and eval/ of its repository.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Ratios, Results, Rows
from llmdiff.evaluation.suites.formats import csv_rows
from llmdiff.evaluation.suites.questions import Question, QuestionScorer, questions_of, sum_answers
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import parse_json, write_whole

_PREFIX = "test_prompts_"
_MISSING_COMMA = re.compile(r'(?<!\\)" +"')


class UniGenBenchScorer(QuestionScorer):
    """The share of a picture's test points that it shows, each asked about as a yes-or-no question.

    The published scorer shows Gemini 2.5 Pro, or a model of its own, all points of a picture at once, with
    explanations.
    """

    name = "unigenbench"


class UniGenBench(Benchmark):
    """UniGenBench++, read from a list such as `test_prompts_en.csv`, or from a folder of lists.

    The tag of a prompt is its list: en, en_long, zh or zh_long. The long lists reword the prompts of the short ones.
    """

    name, title, scorer = UniGenBenchScorer.name, "UniGenBench++", UniGenBenchScorer
    images_per_prompt = 4

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of a list, or of all lists in a folder."""
        files = sorted(path.glob(f"{_PREFIX}*.csv")) if path.is_dir() else [path]
        return [row for file in files for row in _rows(file)], files

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return LIST/SYSTEM/INDEX_NUMBER.png."""
        return f"{row.tags[0]}/{system}/{row.metadata['index']}_{number}.png"

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return the test points shown, in every dimension and sub-dimension of the list."""
        return sum_answers(
            row, results, lambda one: {f"{row.tags[0]}: {name}": 1 for name in (one.group, one.category)}
        )

    def combine(self, ratios: Ratios, rows: Rows) -> Ratios:
        """Return the ratios; of a single list, without its name."""
        if len({row.tags for row in rows}) > 1:
            return ratios
        return {name.partition(": ")[2]: ratio for name, ratio in ratios.items()}

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write SYSTEM_LIST.csv for every list, with a row for each picture."""
        tables: dict[str, io.StringIO] = {}
        for row, some in zip(rows, results, strict=True):
            file = tables.setdefault(row.tags[0], io.StringIO())
            table = csv.writer(file)
            if not file.tell():
                table.writerow(["index", "prompt", "testpoint", "output", "result_json", "img_path"])
            points = [one.category for one in questions_of(row)]
            for number, one in enumerate(some):
                scores = {"testpoint": points, "score": [int(answer) for answer in one["answers"]]}
                path = self.picture_path(row, number, len(some), system)
                record = json.dumps(scores, ensure_ascii=False)
                table.writerow([row.metadata["index"], row.prompt, str(points), "", record, path])
        for name, file in tables.items():
            write_whole(folder / f"{system}_{name}.csv", file.getvalue())

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the scores of the published scorer's MODEL_LIST.csv, or of a folder with one of every list.

        A picture that the scorer could not judge has no result.
        """
        results: dict[str, Sequence[Mapping[str, Any] | None]] = {}
        lists = list(dict.fromkeys(row.tags[0] for row in rows))
        for name in lists:
            files = sorted(place.glob(f"*_{name}.csv")) if place.is_dir() else [place]
            if len(files) != 1 or (len(lists) > 1 and not place.is_dir()):
                raise ConfigError(
                    f"official scores {place}: expected one file MODEL_{name}.csv in a folder with one of every list "
                    f"({', '.join(lists)}), as the published scorer writes"
                )
            some = [row for row in rows if row.tags == (name,)]
            points = {row.id: len(questions_of(row)) for row in some}
            results |= self.by_prompt(_judged(files[0], name, points), some, images_per_prompt, files[0])
        return OfficialScores(results=results)


def _rows(file: Path) -> list[SuitePrompt]:
    name = file.stem.removeprefix(_PREFIX)
    language = name.removesuffix("_long")
    prompt, details = f"prompt_{language}", f"sub_dims_{language}"
    keys = ("考点", "考点对应描述") if language == "zh" else ("Testpoints", "Testpoint Description")

    def row(number: int, line: Mapping[str, str]) -> SuitePrompt:
        # One row of the published en_long list lacks the comma between two strings.
        given = json.loads(_MISSING_COMMA.sub('", "', line[details]))
        questions = [
            Question(text=f'{point}: does this image show "{text}"?', category=point)
            for point, text in zip(*(given[key] for key in keys), strict=True)
        ]
        metadata = {"questions": questions, "index": int(line["index"])}
        return SuitePrompt(id=f"{name}-{line['index']}", prompt=line[prompt], tags=(name,), metadata=metadata)

    return csv_rows(file, f"UniGenBench++'s {_PREFIX}LIST.csv", ("index", prompt, details), row)


def _judged(file: Path, name: str, points: Mapping[str, int]) -> list[tuple[str, int, Mapping[str, Any]]]:
    def result(_: int, line: Mapping[str, str]) -> tuple[str, int, Mapping[str, Any]] | None:
        id = f"{name}-{line['index']}"
        judged = parse_json(line["result_json"] or "null")
        if judged is None:
            return None
        answers = [float(one == 1) for one in judged["score"]]
        if len(answers) != points.get(id, len(answers)):
            raise ValueError(f"{len(answers)} scores of {points[id]} test points")
        number = int(Path(line["img_path"]).stem.split("_")[1])
        return id, number, {"score": sum(answers) / len(answers), "answers": answers}

    found = csv_rows(file, "results of UniGenBench++", ("index", "result_json", "img_path"), result)
    return [one for one in found if one is not None]
