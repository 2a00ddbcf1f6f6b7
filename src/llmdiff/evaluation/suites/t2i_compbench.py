"""T2I-CompBench and T2I-CompBench++: attributes, relations and numbers; attributes are scored by questions.

Source: Huang et al. 2023 (arXiv 2307.06350), section 4.1, and 2025 (T2I-CompBench++); formats: its repository.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.benchmark import Benchmark, OfficialScores, Results, Rows
from llmdiff.evaluation.suites.questions import Question, QuestionScorer
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.files import parse_json, read_text, text_lines, write_whole

_BLIP, _RESULT = "annotation_blip", "vqa_result.json"
# Where the published scorer of every category leaves its result, below the category's folder.
_RESULT_FOLDERS = {
    "color": _BLIP,
    "shape": _BLIP,
    "texture": _BLIP,
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
ASKED = ("color", "shape", "texture")
"""The categories that the published benchmark scores by questions alone."""
_MOST_PHRASES = 8
_NO_PHRASES = ("top", "the side", "the left", "the right")
# Words that end a noun phrase, in place of a parser.
_ENDS = (
    "and", "or", "but", "with", "on", "in", "at", "of", "to", "from", "by", "under", "over", "above", "below",
    "behind", "beside", "near", "next", "is", "are", "was", "were", "has", "have", "that", "which", "while",
)  # fmt: skip


class CompBenchScorer(QuestionScorer):
    """The product of the probabilities of "yes" to the question "PHRASE?" for every noun phrase of a prompt.

    It scores the categories color, shape and texture; the published benchmark scores the others by other models: use
    `clip-score` or the published scorers. The published scorer finds noun phrases with spaCy; this one cuts sentences
    at commas, prepositions and similar words.
    """

    name = "t2i-compbench"
    soft = True

    @staticmethod
    def combine(scores: NDArray[np.float64]) -> float:
        """Return the product."""
        return float(scores.prod())


class CompBench(Benchmark):
    """T2I-CompBench, read from a prompt file such as `color_val.txt`, or from a folder's `*_val.txt`.

    The tag of a prompt is its file's category.
    """

    name, title, scorer = CompBenchScorer.name, "T2I-CompBench", CompBenchScorer
    images_per_prompt = 10

    def prompts(self, path: Path) -> tuple[Rows, Sequence[Path]]:
        """Return the prompts of a file or folder."""
        files = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"suite {path}: no *_val.txt in it, expected T2I-CompBench's examples/dataset")
        rows: list[SuitePrompt] = []
        for file in files:
            # color_val.txt, and the parts of it that the benchmark also publishes: color_val_seen.txt
            category = re.sub(r"_(train|val)(_(un)?seen)?$", "", file.stem)
            if category not in _RESULT_FOLDERS:
                raise ConfigError(
                    f"suite {file}: {category!r} is no category of T2I-CompBench, expected "
                    f"{', '.join(f'{name}_val.txt' for name in _RESULT_FOLDERS)}"
                )
            # Some lists have the parts of a prompt after a tab.
            lines = [line.split("\t")[0].strip() for line in text_lines(read_text(file))]
            for number, prompt in enumerate(filter(None, lines)):
                metadata: dict[str, Any] = {"number": number}
                if category in ASKED:
                    phrases = noun_phrases(prompt) or [prompt]
                    metadata["questions"] = [Question(text=f"{one}?", category=category) for one in phrases]
                id = f"{category}-{len(rows):05d}"
                rows.append(SuitePrompt(id=id, prompt=prompt, tags=(category,), metadata=metadata))
        return rows, files

    def picture_path(self, row: SuitePrompt, number: int, count: int, system: str) -> str:
        """Return CATEGORY/samples/PROMPT_NUMBER.png."""
        # The published scorers read the prompt from the file's name, up to the first underscore.
        prompt = re.sub(r"[/_]", " ", row.prompt)
        return f"{row.tags[0]}/samples/{prompt}_{_number(row, number, count):06d}.png"

    def write_scores(self, rows: Rows, results: Results, folder: Path, system: str) -> None:
        """Write CATEGORY/annotation_blip/vqa_result.json: question_id and answer of every picture."""
        scores: dict[str, list[dict[str, Any]]] = {}
        for row, found in zip(rows, results, strict=True):
            (category,) = row.tags
            if category in ASKED:
                scores.setdefault(category, []).extend(
                    {"question_id": _number(row, number, len(found)), "answer": f"{one['score']:.4f}"}
                    for number, one in enumerate(found)
                )
        for category, lines in scores.items():
            write_whole(folder / category / _RESULT_FOLDERS[category] / _RESULT, json.dumps(lines))

    def read_scores(self, place: Path, rows: Rows, images_per_prompt: int) -> OfficialScores:
        """Return the scores of all categories that the published scorers have scored.

        `place`: a folder with CATEGORY/annotation_blip/vqa_result.json (for complex: annotation_3_in_1), as the
        published scorers leave them; or one such file if all prompts are of one category.
        """
        categories = list(dict.fromkeys(row.tags[0] for row in rows))
        if not place.is_dir():
            if len(categories) > 1:
                raise ConfigError(
                    f"official scores {place}: a file of one category, and the prompts are of {', '.join(categories)}; "
                    "expected a folder with a folder of every category"
                )
            files = {categories[0]: place}
        else:
            files = {
                path.name: path / _RESULT_FOLDERS.get(path.name, "") / _RESULT
                for path in sorted(place.iterdir())
                if path.is_dir() and any(path.rglob(_RESULT))
            }
        if not files or set(files) - set(categories):
            raise ConfigError(
                f"official scores {place}: has results of {', '.join(files) or 'no category'}, expected folders "
                f"{', '.join(f'{one}/{_RESULT_FOLDERS[one]}' for one in categories)} with {_RESULT}"
            )
        results: dict[str, Sequence[Mapping[str, Any] | None]] = {}
        for category, file in files.items():
            if not file.exists():
                raise ConfigError(
                    f"official scores {place / category}: has no {file.relative_to(place / category)}, the result of "
                    f"the published scorer of {category}; other results there are not the category's"
                )
            some = [row for row in rows if row.tags == (category,)]
            ids = {row.metadata["number"]: row.id for row in some}
            found = []
            for number, score in _read_result(file):
                index, picture = divmod(number, images_per_prompt)
                if index > max(ids):
                    raise ConfigError(
                        f"official scores {file}: has picture {number}, expected at most "
                        f"{(max(ids) + 1) * images_per_prompt} from 0 on: {images_per_prompt} of each prompt of "
                        f"{category}"
                    )
                found.append((ids.get(index, ""), picture, {"score": score}))
            results |= self.by_prompt(found, some, images_per_prompt, file)
        return OfficialScores(results=results)


def noun_phrases(prompt: str) -> list[str]:
    """Return the pieces of a prompt between commas, prepositions and similar words: the subjects of its questions.

    As in the published scorer, pieces such as "the left" are left out, and at most eight are asked about.
    """
    ends = rf"[,.;:]|\b(?:{'|'.join(_ENDS)})\b"
    pieces = [" ".join(part.split()) for part in re.split(ends, prompt)]
    return [piece for piece in pieces if piece and piece not in _NO_PHRASES][:_MOST_PHRASES]


def _number(row: SuitePrompt, number: int, count: int) -> int:
    """Return the number of a picture within its category, as the published scorers count."""
    return int(row.metadata["number"]) * count + number


def _read_result(file: Path) -> list[tuple[int, float]]:
    try:
        return [(int(one["question_id"]), float(one["answer"])) for one in parse_json(read_text(file))]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"official scores {file}: {error}, expected T2I-CompBench's vqa_result.json"
        ) from error
