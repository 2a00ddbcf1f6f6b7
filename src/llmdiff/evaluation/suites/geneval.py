"""GenEval: short prompts about objects, their number, colours and places, scored by an object detector.

Source: Ghosh, Hajishirzi and Schmidt 2023 (arXiv 2310.11513); formats: prompts/ and evaluation/ of its repository.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from llmdiff.errors import MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.statistics import Interval
from llmdiff.evaluation.suites.detection import (
    ColourReader,
    Detector,
    TransformersDetector,
    judge_detections,
)
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
from llmdiff.files import write_whole

NAME, _TITLE = "geneval", "GenEval"
IMAGES_PER_PROMPT = 4


def read_geneval(path: Path) -> PromptSuite:
    """Return the suite of `evaluation_metadata.jsonl`, or of its folder, with four pictures each, as published.

    Raises:
        InputFileError: the file is missing.
        ConfigError: lines without tag, include and prompt.
    """
    file = path / "evaluation_metadata.jsonl" if path.is_dir() else path
    rows = json_lines(file, f"{_TITLE}'s evaluation_metadata.jsonl", _row)
    return suite_of(NAME, rows, [file], images_per_prompt=IMAGES_PER_PROMPT, benchmark=_TITLE)


def _row(number: int, facts: Any) -> SuitePrompt:
    if not all({"class", "count"} <= set(clause) for clause in facts["include"]):
        raise KeyError("class")
    return SuitePrompt(id=f"{number:05d}", prompt=facts["prompt"], tags=(str(facts["tag"]),), facts=facts)


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
            MetricError: not two of them, or one cannot be loaded.
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
        """1 for a picture that is right, else 0, with the reason and what was detected."""
        judged = []
        for picture, row in zip(pictures, rows, strict=True):
            # Count only detections with a high score, as published.
            threshold = 0.9 if row.facts["tag"] == "counting" else 0.3
            found = self.detector.detect(picture, threshold)
            correct, reason = judge_detections(found, row.facts, self.colours.reader(picture))
            judged.append(
                {
                    "score": float(correct),
                    "reason": reason,
                    "details": {
                        name: [[*one.box, one.score] for one in objects] for name, objects in found.items()
                    },
                }
            )
        return judged

    @staticmethod
    def failed(row: SuitePrompt) -> dict[str, Any]:
        """0."""
        return {"score": 0.0}


def geneval_figures(rows: Sequence[SuitePrompt], results: Results) -> dict[str, Interval]:
    """Return the share of prompts with at least one right picture."""
    return pooled_figures(
        [{"prompts with a right picture": (float(any(one["score"] for one in some)), 1)} for some in results]
    )


def write_scores(rows: Sequence[SuitePrompt], results: Results, folder: Path, system: str) -> None:
    """Write a line of JSON per picture in the published format."""
    lines = [
        json.dumps(
            {
                "filename": _picture_path(row, number, 0, system),
                "tag": row.facts["tag"],
                "prompt": row.prompt,
                "correct": bool(one["score"]),
                "reason": one.get("reason", "not drawn"),
                "metadata": json.dumps(dict(row.facts)),
                "details": json.dumps(one.get("details", {})),
            }
        )
        for row, found in zip(rows, results, strict=True)
        for number, one in enumerate(found)
    ]
    write_whole(folder / "results.jsonl", "\n".join(lines) + "\n")


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return whether each picture is right, from results that the published scorer wrote.

    Raises:
        ConfigError: a line is no such result, or none is of these prompts, or a picture is one too many.
    """

    def result(_: int, given: Any) -> tuple[str, int, Mapping[str, Any]]:
        place = Path(given["filename"])  # .../00012/samples/0003.png
        return place.parent.parent.name, int(place.stem), {"score": float(given["correct"])}

    found = json_lines(file, f"{_TITLE}'s results.jsonl", result)
    return OfficialScores(results=results_by_prompt(found, rows, images_per_prompt, file))


def _picture_path(row: SuitePrompt, number: int, count: int, system: str) -> str:
    return f"{row.id}/samples/{number:04d}.png"


BENCHMARK = Benchmark(
    name=NAME,
    title=_TITLE,
    read=read_geneval,
    scorer=GenEvalScorer,
    picture_path=_picture_path,
    side_files=lambda rows, system: {f"{row.id}/metadata.jsonl": json.dumps(dict(row.facts)) for row in rows},
    write_scores=write_scores,
    read_scores=read_scores,
    figures=geneval_figures,
)
