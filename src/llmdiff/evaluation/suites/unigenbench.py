"""UniGenBench++: short and long prompts, English and Chinese, with points to test in ten dimensions.

Source: Wang et al. 2025 (arXiv 2508.20751 and 2510.18701); formats: data/ and eval/ of its repository.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.errors import ConfigError
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.formats import csv_rows
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
from llmdiff.files import parse_json, write_whole

NAME, _TITLE = "unigenbench", "UniGenBench++"
IMAGES_PER_PROMPT = 4
_PREFIX = "test_prompts_"
_LACKING_COMMA = re.compile(r'(?<!\\)" +"')


def read_unigenbench(path: Path) -> PromptSuite:
    """Return the suite of a list such as `test_prompts_en.csv`, or of all in a folder; four pictures each.

    Every prompt's tag is its list: en, en_long, zh or zh_long. The long prompts are longer twins of the short ones.

    Raises:
        ConfigError: no such lists, or one with other columns.
    """
    files = sorted(path.glob(f"{_PREFIX}*.csv")) if path.is_dir() else [path]
    rows = [row for file in files for row in _rows(file)]
    return suite_of(NAME, rows, files or [path], images_per_prompt=IMAGES_PER_PROMPT, benchmark=_TITLE)


def _rows(file: Path) -> list[SuitePrompt]:
    name = file.stem.removeprefix(_PREFIX)
    language = name.removesuffix("_long")
    prompt, details = f"prompt_{language}", f"sub_dims_{language}"
    keys = ("考点", "考点对应描述") if language == "zh" else ("Testpoints", "Testpoint Description")

    def row(number: int, line: Mapping[str, str]) -> SuitePrompt:
        # A row of the published en_long list lacks the comma between two strings.
        given = json.loads(_LACKING_COMMA.sub('", "', line[details]))
        questions = [
            Question(text=f'{point}: does this image show "{text}"?', category=point)
            for point, text in zip(*(given[key] for key in keys), strict=True)
        ]
        facts = {"questions": questions, "index": int(line["index"])}
        return SuitePrompt(id=f"{name}-{line['index']}", prompt=line[prompt], tags=(name,), facts=facts)

    return csv_rows(file, f"{_TITLE}'s {_PREFIX}LIST.csv", ("index", prompt, details), row)


class UniGenBenchScorer(QuestionScorer):
    """The share of a picture's test points that it shows, each asked about as a yes-or-no question.

    The published scorer shows Gemini 2.5 Pro, or a model of its own, all points of a picture at once, with
    explanations.
    """

    name = NAME


def unigenbench_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return the share of test points shown, of all pictures, in every dimension and sub-dimension, list by list."""
    lists = dict.fromkeys(row.tags[0] for row in rows)

    def categories(row: SuitePrompt, one: Question) -> Iterable[str]:
        prefix = f"{row.tags[0]}: " if len(lists) > 1 else ""
        return dict.fromkeys((prefix + one.group, prefix + one.category))

    return pooled_figures(
        [
            tally_answers(row, some, lambda one, row=row: categories(row, one))  # type: ignore[misc]
            for row, some in zip(rows, results, strict=True)
        ]
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write SYSTEM_LIST.csv for every list, with a row for each picture, as the published scorer does."""
    tables: dict[str, io.StringIO] = {}
    for row, some in zip(rows, results, strict=True):
        file = tables.setdefault(row.tags[0], io.StringIO())
        table = csv.writer(file)
        if not file.tell():
            table.writerow(["index", "prompt", "testpoint", "output", "result_json", "img_path"])
        points = [one.category for one in questions_of(row)]
        for number, one in enumerate(some):
            scores = {"testpoint": points, "score": [int(answer) for answer in one["answers"]]}
            path = _picture_path(row, number, len(some), system)
            said = json.dumps(scores, ensure_ascii=False)
            table.writerow([row.facts["index"], row.prompt, str(points), "", said, path])
    for name, file in tables.items():
        write_whole(folder / f"{system}_{name}.csv", file.getvalue())


def read_scores(place: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the scores of the published scorer's MODEL_LIST.csv, or of a folder with one of every list.

    A picture that it could not judge, which its own figures leave out, is a missing one.

    Raises:
        ConfigError: a list's file is missing, or there are several, or a row has not one score of every test point.
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
        results |= results_by_prompt(_judged(files[0], name, points), some, images_per_prompt, files[0])
    return OfficialScores(results=results)


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

    found = csv_rows(file, f"results of {_TITLE}", ("index", "result_json", "img_path"), result)
    return [one for one in found if one is not None]


def _picture_path(row: SuitePrompt, number: int, count: int, system: str) -> str:
    return f"{row.tags[0]}/{system}/{row.facts['index']}_{number}.png"


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_unigenbench,
    scorer=UniGenBenchScorer,
    picture_path=_picture_path,
    write_scores=write_scores,
    read_scores=read_scores,
    figures=unigenbench_figures,
)
