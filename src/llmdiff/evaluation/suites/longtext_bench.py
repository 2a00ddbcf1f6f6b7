"""LongText-Bench: prompts that ask for texts of several lines in the picture, English or Chinese.

Source: Geng et al. 2025 (X-Omni, arXiv 2507.22058); formats: textbench/ of its repository.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.answerers import ChatAnswerer, TextReader
from llmdiff.evaluation.suites.formats import json_lines
from llmdiff.evaluation.suites.questions import pooled_figures
from llmdiff.evaluation.suites.suite import (
    Benchmark,
    OfficialScores,
    PromptSuite,
    Results,
    SuitePrompt,
    results_by_prompt,
    suite_of,
)
from llmdiff.evaluation.suites.text_accuracy import matches, normalised
from llmdiff.files import write_whole

NAME, _TITLE = "longtext-bench", "LongText-Bench"
IMAGES_PER_PROMPT = 4


def read_longtext_bench(path: Path) -> PromptSuite:
    """Return the suite of `text_prompts.jsonl` (English) or `text_prompts_zh.jsonl` (Chinese); four pictures each.

    Every prompt's tags are its category and its length, short or long.

    Raises:
        InputFileError: the file is missing.
        ConfigError: a line without prompt_id, prompt, text, category and length.
    """
    chinese = path.stem.endswith("_zh")

    def row(_: int, given: Any) -> SuitePrompt:
        if not normalised(" ".join(given["text"]), spaces=True):
            raise ValueError(f"text {given['text']!r} has no letters or digits to find")
        return SuitePrompt(
            id=f"{int(given['prompt_id']):04d}",
            prompt=given["prompt"],
            tags=(given["category"], given["length"]),
            facts={"text": list(given["text"]), "chinese": chinese},
        )

    rows = json_lines(path, f"{_TITLE}'s text_prompts.jsonl", row)
    return suite_of(NAME, rows, [path], images_per_prompt=IMAGES_PER_PROMPT, benchmark=_TITLE)


class LongTextScorer:
    """The share of the wanted words, or Chinese characters, that a model reads in a picture, in any order.

    The published scorer reads with Qwen2.5-VL-7B-Instruct; this one reads with any chat model that sees pictures.
    """

    name = NAME

    def __init__(self, reader: TextReader) -> None:
        self.reader, self.model_id = reader, reader.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with the chat model of a folder or Hub id.

        Raises:
            MetricError: the model is not available, or reads no pictures.
        """
        return cls(ChatAnswerer.from_pretrained(name_or_path, device=device))

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the score of every picture, and the text that was read."""
        return [text_result(row, text) for row, text in zip(rows, self.reader.read(pictures), strict=True)]

    @staticmethod
    def failed(row: SuitePrompt) -> dict[str, Any]:
        """Return the result of a picture without text."""
        return text_result(row, "")


def text_result(row: SuitePrompt, text: str) -> dict[str, Any]:
    """Return the result of a picture in which this text was read."""
    chinese = row.facts["chinese"]
    wanted, found = (normalised(one, spaces=not chinese) for one in (" ".join(row.facts["text"]), text))
    if not chinese:
        wanted, found = wanted.lower(), found.lower()
    right, count = matches(wanted, found, characters=chinese)
    return {"score": right / count, "right": right, "count": count, "text": text}


def longtext_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return the share of all wanted words or characters that were found, over all pictures, and by length."""
    return pooled_figures(
        [
            dict.fromkeys(
                ("Text Score", f"Text Score, {row.tags[1]}"),
                (sum(one["right"] for one in some), sum(one["count"] for one in some)),
            )
            for row, some in zip(rows, results, strict=True)
        ]
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write results.jsonl with the text that was wanted and read in every picture."""
    lines = [
        json.dumps(
            {
                "image": _picture_path(row, number, 0, system),
                "prompt": row.prompt,
                "ocr_gt": row.facts["text"],
                "ocr_results": one["text"],
            },
            ensure_ascii=False,
        )
        for row, some in zip(rows, results, strict=True)
        for number, one in enumerate(some)
    ]
    write_whole(folder / "results.jsonl", "\n".join(lines) + "\n")


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the text that the published scorer read in every picture, by its results.jsonl, scored here.

    Raises:
        ConfigError: a line is no such result, or none is of these prompts, or a picture is one too many.
    """
    by_id = {row.id: row for row in rows}

    def result(_: int, given: Any) -> tuple[str, int, Mapping[str, Any]]:
        prompt, *repeat = Path(given["image"]).stem.split("_")
        id = f"{int(prompt):04d}"
        found = text_result(by_id[id], str(given["ocr_results"])) if id in by_id else {}
        return id, int(repeat[0] if repeat else 1) - 1, found

    found = json_lines(file, f"{_TITLE}'s results.jsonl", result)
    return OfficialScores(results=results_by_prompt(found, rows, images_per_prompt, file))


def _picture_path(row: SuitePrompt, number: int, count: int, system: str) -> str:
    return f"{row.id}_{number + 1}.png"


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_longtext_bench,
    scorer=LongTextScorer,
    picture_path=_picture_path,
    write_scores=write_scores,
    read_scores=read_scores,
    figures=longtext_figures,
)
