"""T2I-CompBench: prompts about attributes and relations; those about attributes are scored by questions.

Source: Huang et al. 2023 (arXiv 2307.06350), section 4.1; formats: examples/ of its repository.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from llmdiff.errors import ConfigError
from llmdiff.evaluation.metrics.kinds import Pictures
from llmdiff.evaluation.suites.questions import Answerer, BlipAnswerer
from llmdiff.evaluation.suites.suite import (
    OfficialScores,
    PromptSuite,
    SuitePrompt,
    suite_of,
)
from llmdiff.files import parse_json, read_text, text_lines, whole_file, write_whole

NAME = "t2i-compbench"
IMAGES_PER_PROMPT = 10
ASKED = ("color", "shape", "texture")
"""The categories that the published benchmark scores by questions."""
# Of a category's folder, where the published scorer leaves its scores.
_RESULT = Path("annotation_blip") / "vqa_result.json"
# Words that end a noun phrase where nothing parses the sentence.
_ENDS = (
    "and", "or", "but", "with", "on", "in", "at", "of", "to", "from", "by", "under", "over", "above", "below",
    "behind", "beside", "near", "next", "is", "are", "was", "were", "has", "have", "that", "which", "while",
)  # fmt: skip


def read_t2i_compbench(path: Path) -> PromptSuite:
    """Return the suite of a prompt file such as `color_val.txt`, or of a folder's `*_val.txt`; ten pictures each.

    Every prompt's tag is its file's category.

    Raises:
        ConfigError: no such files, or prompts in them twice.
    """
    files = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"suite {path}: no *_val.txt in it, expected T2I-CompBench's examples/dataset")
    rows: list[SuitePrompt] = []
    for file in files:
        category = file.stem.removesuffix("_val").removesuffix("_train")
        for line in text_lines(read_text(file)):
            # Some lists carry the parts of a prompt behind a tab.
            prompt = line.split("\t")[0].strip()
            if prompt:
                rows.append(SuitePrompt(id=f"{category}-{len(rows):05d}", prompt=prompt, tags=(category,)))
    return suite_of(NAME, rows, files, images_per_prompt=IMAGES_PER_PROMPT, benchmark="T2I-CompBench")


def noun_phrases(prompt: str) -> list[str]:
    """Return the pieces of a prompt between commas, prepositions and the like: what its questions are about."""
    ends = rf"[,.;:]|\b(?:{'|'.join(_ENDS)})\b"
    return [piece for piece in (" ".join(part.split()) for part in re.split(ends, prompt)) if piece]


class CompBenchScorer:
    """The product over a prompt's noun phrases of how probable "yes" is to the question "PHRASE?".

    For the categories color, shape and texture; pictures of others have no score here, as the published benchmark
    scores them by other models: score those with `clip-score`, or with the published scorers. The published scorer
    finds noun phrases with spaCy; this one cuts sentences at commas, prepositions and the like.
    """

    name = NAME
    tags = ASKED

    def __init__(self, answerer: Answerer) -> None:
        self.answerer, self.model_id = answerer, answerer.model_id

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str = "cpu") -> Self:
        """Return the scorer with the BLIP of a folder or Hub id."""
        return cls(BlipAnswerer.from_pretrained(name_or_path, device=device))

    def judge(self, pictures: Pictures, rows: Sequence[SuitePrompt]) -> list[dict[str, Any]]:
        """Return the score of every picture, and the answer about every phrase."""
        judged: list[dict[str, Any]] = []
        for picture, row in zip(pictures, rows, strict=True):
            if not set(row.tags) & set(self.tags):
                judged.append({})
                continue
            phrases = noun_phrases(row.prompt) or [row.prompt]
            yes = self.answerer.yes(
                np.repeat(picture[None], len(phrases), axis=0), [f"{phrase}?" for phrase in phrases]
            )
            judged.append(
                {
                    "score": float(np.prod(yes)),
                    "answers": {phrase: float(p) for phrase, p in zip(phrases, yes, strict=True)},
                }
            )
        return judged

    def failed(self, row: SuitePrompt) -> dict[str, Any]:
        """0 in the categories that are scored."""
        return {"score": 0.0} if set(row.tags) & set(self.tags) else {}


def export_pictures(rows: Sequence[SuitePrompt], pictures: Sequence[Pictures], folder: Path) -> None:
    """Write CATEGORY/samples/PROMPT_NUMBER.png, numbered through a category, as the published scorers read them."""
    numbers: dict[str, int] = {}
    for row, images in zip(rows, pictures, strict=True):
        (category,) = row.tags
        for image in images:
            number = numbers[category] = numbers.get(category, -1) + 1
            # The published scorers read the prompt from the file's name, up to the first underscore.
            name = f"{re.sub(r'[/_]', ' ', row.prompt)}_{number:06d}.png"
            with whole_file(folder / category / "samples" / name) as partial:
                Image.fromarray(image).save(partial, format="PNG")


def write_scores(
    rows: Sequence[SuitePrompt], judged: Sequence[Sequence[Mapping[str, Any]]], file: Path
) -> None:
    """Write CATEGORY/annotation_blip/vqa_result.json beside `file`: question_id and answer of every picture.

    Pictures are numbered through a category, as in `export_pictures`.
    """
    scores: dict[str, list[float]] = {}
    for row, found in zip(rows, judged, strict=True):
        (category,) = row.tags
        if category in ASKED:
            scores.setdefault(category, []).extend(one["score"] for one in found)
    for category, values in scores.items():
        lines = [{"question_id": number, "answer": f"{score:.4f}"} for number, score in enumerate(values)]
        write_whole(file.parent / category / _RESULT, json.dumps(lines))


def read_scores(place: Path, rows: Sequence[SuitePrompt], images_per_prompt: int) -> OfficialScores:
    """Return the mean score of every prompt's pictures, of the categories that the published scorer has scored.

    `place`: a folder with CATEGORY/annotation_blip/vqa_result.json, or one such file where the prompts are of one
    category: what stands in it does not say of which.

    Raises:
        ConfigError: it is neither, or of another category.
    """
    prompts: dict[str, list[str]] = {}
    for row in rows:
        prompts.setdefault(row.tags[0], []).append(row.id)
    if place.is_dir():
        files = {path.parents[1].name: path for path in sorted(place.glob(f"*/{_RESULT}"))}
    elif len(prompts) == 1:
        files = {next(iter(prompts)): place}
    else:
        raise ConfigError(
            f"official scores {place}: a file of one category, and the prompts are of {', '.join(prompts)}; expected a "
            f"folder with CATEGORY/{_RESULT}"
        )
    if not files or set(files) - set(prompts):
        raise ConfigError(
            f"official scores {place}: has categories {', '.join(files) or 'none'}, expected CATEGORY/{_RESULT} of "
            f"{', '.join(prompts)}"
        )
    scores: dict[str, float] = {}
    missing = 0
    for category, file in files.items():
        found = _read_result(file)
        size = len(prompts[category]) * images_per_prompt
        if max(found, default=0) >= size:
            raise ConfigError(
                f"official scores {file}: has picture {max(found)}, expected at most {size} from 0 on: "
                f"{images_per_prompt} of each of the {len(prompts[category])} prompts of {category}"
            )
        missing += size - len(found)
        for index, one in enumerate(prompts[category]):
            numbers = range(index * images_per_prompt, (index + 1) * images_per_prompt)
            scores[one] = float(np.mean([found.get(number, 0.0) for number in numbers]))
    return OfficialScores(by_id=scores, missing=missing)


def _read_result(file: Path) -> dict[int, float]:
    try:
        return {int(one["question_id"]): float(one["answer"]) for one in parse_json(read_text(file))}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"official scores {file}: {error}, expected T2I-CompBench's vqa_result.json"
        ) from error
