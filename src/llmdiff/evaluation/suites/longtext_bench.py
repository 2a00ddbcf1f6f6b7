"""LongText-Bench: prompts that ask for texts of several lines in the picture, English or Chinese.

Source: Geng et al. 2025 (X-Omni, arXiv 2507.22058); formats: textbench/ of its repository.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.answerers import ChatAnswerer, TextReader
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Results, Rows
from llmdiff.evaluation.suites.formats import json_lines, write_json_lines
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.evaluation.suites.text_accuracy import matches, normalised


class LongTextScorer:
    """The share of the wanted words, or Chinese characters, that a model reads in a picture, in any order.

    The published scorer reads with Qwen2.5-VL-7B-Instruct; this one reads with any chat model that sees pictures.
    """

    name = "longtext-bench"

    def __init__(self, reader: TextReader) -> None:
        self.reader, self.model_id = reader, reader.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with the chat model of a folder or Hub id.

        Raises:
            MetricError: the model is not available, or does not read pictures.
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
    chinese = row.metadata["chinese"]
    wanted, found = (normalised(one, spaces=not chinese) for one in (" ".join(row.metadata["text"]), text))
    if not chinese:
        wanted, found = wanted.lower(), found.lower()
    right, count = matches(wanted, found, characters=chinese)
    return {"score": right / count, "right": right, "count": count, "text": text}


class LongTextBench(Benchmark):
    """LongText-Bench, read from `text_prompts.jsonl` (English) or `text_prompts_zh.jsonl` (Chinese).

    The tags of a prompt are its category and its length, short or long.
    """

    name, title, scorer = LongTextScorer.name, "LongText-Bench", LongTextScorer
    images_per_prompt = 4

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of a file."""
        chinese = path.stem.endswith("_zh")

        def row(_: int, given: Any) -> SuitePrompt:
            if not normalised(" ".join(given["text"]), spaces=True):
                raise ValueError(f"text {given['text']!r} has no letters or digits to find")
            return SuitePrompt(
                id=f"{int(given['prompt_id']):04d}",
                prompt=given["prompt"],
                tags=(given["category"], given["length"]),
                metadata={"text": list(given["text"]), "chinese": chinese},
            )

        return json_lines(path, "LongText-Bench's text_prompts.jsonl", row), [path]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return PROMPT_NUMBER.png, numbered from 1."""
        return f"{row.id}_{number + 1}.png"

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return how many of the wanted words or characters were found, overall and by length."""
        found = (sum(one["right"] for one in results), sum(one["count"] for one in results))
        return dict.fromkeys(("Text Score", f"Text Score, {row.tags[1]}"), found)

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write results.jsonl with the text that was wanted and read in every picture."""
        lines = [
            {
                "image": self.picture_path(row, number, len(some), system),
                "prompt": row.prompt,
                "ocr_gt": row.metadata["text"],
                "ocr_results": one["text"],
            }
            for row, some in zip(rows, results, strict=True)
            for number, one in enumerate(some)
        ]
        write_json_lines(folder / "results.jsonl", lines)

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the results of the texts in the published results.jsonl, computed by `text_result`."""
        by_id = {row.id: row for row in rows}

        def result(_: int, given: Any) -> tuple[str, int, Mapping[str, Any]]:
            prompt, *repeat = Path(given["image"]).stem.split("_")
            id = f"{int(prompt):04d}"
            found = text_result(by_id[id], str(given["ocr_results"])) if id in by_id else {}
            return id, int(repeat[0] if repeat else 1) - 1, found

        found = json_lines(place, "LongText-Bench's results.jsonl", result)
        return OfficialScores(results=self.by_prompt(found, rows, images_per_prompt, place))
