"""GenEval: short prompts about objects, their number, colours and positions, scored by an object detector.

Source: Ghosh, Hajishirzi and Schmidt 2023 (arXiv 2310.11513); formats: prompts/ and evaluation/ of its repository.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.benchmark import Benchmark, CategorySums, OfficialScores, Results, Rows
from llmdiff.evaluation.suites.detection import (
    ColourReader,
    Detector,
    TransformersDetector,
    judge_detections,
)
from llmdiff.evaluation.suites.formats import json_lines, write_json_lines
from llmdiff.evaluation.suites.suite import SuitePrompt

NAME = "geneval"


class GenEvalScorer:
    """Scores whether a picture satisfies its metadata by GenEval's rules, with a detector and a CLIP model.

    The published scorer detects with a Mask2Former of mmdet and cuts objects out by their masks before it reads
    their colours; this one takes any object detector of transformers, and their boxes.
    """

    name = NAME

    def __init__(self, detector: Detector, colours: ColourReader) -> None:
        self.detector, self.colours = detector, colours
        self.model_id = f"{detector.model_id},{colours.model_id}"

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with two models, DETECTOR,CLIP: folders or Hub ids.

        Raises:
            MetricError: there are not two names, or a model cannot be loaded.
        """
        names = str(name_or_path).split(",")
        if len(names) != 2:
            raise MetricError(
                f"metric {NAME}: got model {str(name_or_path)!r}, expected two with a comma between them: an object "
                "detector, and a CLIP model that tells colours"
            )
        return cls(
            TransformersDetector.from_pretrained(names[0], device=device),
            ColourReader.from_pretrained(names[1], device=device),
        )

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return score 1 for a correct picture, else 0, with the reason and the detections."""
        judged = []
        for picture, row in zip(pictures, rows, strict=True):
            # Count only detections with a high score, as published.
            threshold = 0.9 if row.metadata["tag"] == "counting" else 0.3
            found = self.detector.detect(picture, threshold)
            correct, reason = judge_detections(found, row.metadata, self.colours.reader(picture))
            details = {name: [[*one.box, one.score] for one in objects] for name, objects in found.items()}
            judged.append({"score": float(correct), "reason": reason, "details": details})
        return judged

    @staticmethod
    def failed(row: SuitePrompt) -> dict[str, Any]:
        """Return score 0."""
        return {"score": 0.0}


class GenEval(Benchmark):
    """GenEval, read from `evaluation_metadata.jsonl`."""

    name, title, scorer = NAME, "GenEval", GenEvalScorer
    images_per_prompt = 4

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of `evaluation_metadata.jsonl`, or of its folder."""
        file = path / "evaluation_metadata.jsonl" if path.is_dir() else path
        return json_lines(file, "GenEval's evaluation_metadata.jsonl", _row), [file]

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return PROMPT/samples/NUMBER.png."""
        return f"{row.id}/samples/{number:04d}.png"

    def side_files(self, rows: Rows, system: str) -> Mapping[str, str]:
        """Return the metadata of every prompt."""
        return {f"{row.id}/metadata.jsonl": json.dumps(dict(row.metadata)) for row in rows}

    def category_sums(self, row: SuitePrompt, results: Sequence[Mapping[str, Any]]) -> CategorySums:
        """Return whether at least one picture is right."""
        return {"prompts with a right picture": (float(any(one["score"] for one in results)), 1)}

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write results.jsonl, with a line for every picture."""
        lines = [
            {
                "filename": self.picture_path(row, number, len(found), system),
                "tag": row.metadata["tag"],
                "prompt": row.prompt,
                "correct": bool(one["score"]),
                "reason": one.get("reason", "not drawn"),
                "metadata": json.dumps(dict(row.metadata)),
                "details": json.dumps(one.get("details", {})),
            }
            for row, found in zip(rows, results, strict=True)
            for number, one in enumerate(found)
        ]
        write_json_lines(folder / "results.jsonl", lines)

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return whether every picture is right, from results.jsonl."""

        def result(_: int, given: Any) -> tuple[str, int, Mapping[str, Any]]:
            picture = Path(given["filename"])  # .../00012/samples/0003.png
            return picture.parent.parent.name, int(picture.stem), {"score": float(given["correct"])}

        found = json_lines(place, "GenEval's results.jsonl", result)
        return OfficialScores(results=self.by_prompt(found, rows, images_per_prompt, place))


def _row(number: int, metadata: Any) -> SuitePrompt:
    if not all({"class", "count"} <= set(clause) for clause in metadata["include"]):
        raise KeyError("class")
    return SuitePrompt(
        id=f"{number:05d}", prompt=metadata["prompt"], tags=(str(metadata["tag"]),), metadata=metadata
    )
