"""GenEval: short prompts about objects, their number, colours and places, scored by an object detector.

Source: Ghosh, Hajishirzi and Schmidt 2023 (arXiv 2310.11513); formats: prompts/ and evaluation/ of its repository.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from PIL import Image

from llmdiff.errors import ConfigError, MetricError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.detection import (
    ColourReader,
    Detector,
    TransformersDetector,
    judge_detections,
)
from llmdiff.evaluation.suites.suite import (
    OfficialScores,
    PromptSuite,
    SuitePrompt,
    scores_of_prompts,
    suite_of,
)
from llmdiff.files import is_blank, parse_json, read_text, text_lines, whole_file, write_whole

NAME = "geneval"
IMAGES_PER_PROMPT = 4


def read_geneval(path: Path) -> PromptSuite:
    """Return the suite of `evaluation_metadata.jsonl`, or of its folder, with four pictures each, as published.

    Raises:
        InputFileError: the file is missing.
        ConfigError: lines without tag, include and prompt.
    """
    file = path / "evaluation_metadata.jsonl" if path.is_dir() else path
    rows: list[SuitePrompt] = []
    for line in text_lines(read_text(file)):
        if is_blank(line):
            continue
        try:
            facts = parse_json(line)
            rows.append(
                SuitePrompt(
                    id=f"{len(rows):05d}", prompt=facts["prompt"], tags=(str(facts["tag"]),), facts=facts
                )
            )
            if not all({"class", "count"} <= set(clause) for clause in facts["include"]):
                raise KeyError("class")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"suite {file}, line {len(rows) + 1}: {error}, expected GenEval's evaluation_metadata.jsonl"
            ) from error
    return suite_of(NAME, rows, [file], images_per_prompt=IMAGES_PER_PROMPT, benchmark="GenEval")


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

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """0."""
        return {"score": 0.0}


def export_pictures(rows: Sequence[SuitePrompt], pictures: Sequence[Pictures], folder: Path) -> None:
    """Write NUMBER/metadata.jsonl and NUMBER/samples/NUMBER.png, as the published scorer reads them."""
    for row, images in zip(rows, pictures, strict=True):
        write_whole(folder / row.id / "metadata.jsonl", json.dumps(dict(row.facts)))
        for number, image in enumerate(images):
            with whole_file(folder / row.id / "samples" / f"{number:04d}.png") as partial:
                Image.fromarray(image).save(partial, format="PNG")


def write_scores(
    rows: Sequence[SuitePrompt], judged: Sequence[Sequence[Mapping[str, Any]]], file: Path
) -> None:
    """Write a line of JSON per picture in the published format."""
    lines = [
        json.dumps(
            {
                "filename": f"{row.id}/samples/{number:04d}.png",
                "tag": row.facts["tag"],
                "prompt": row.prompt,
                "correct": bool(one["score"]),
                "reason": one.get("reason", "not drawn"),
                "metadata": json.dumps(dict(row.facts)),
                "details": json.dumps(one.get("details", {})),
            }
        )
        for row, found in zip(rows, judged, strict=True)
        for number, one in enumerate(found)
    ]
    write_whole(file, "\n".join(lines) + "\n")


def read_scores(file: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the share of right pictures of every prompt by its name, from results that the published scorer wrote.

    Raises:
        ConfigError: a line is no such result, or none is of these prompts.
    """
    found: dict[str, list[float]] = {}
    for number, line in enumerate(text_lines(read_text(file)), start=1):
        try:
            given = parse_json(line)
            # .../00012/samples/0003.png => 00012
            found.setdefault(Path(given["filename"]).parent.parent.name, []).append(float(given["correct"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"official scores {file}, line {number}: {error}, expected GenEval's results.jsonl"
            ) from error
    return scores_of_prompts({name: sum(values) / len(values) for name, values in found.items()}, rows, file)
