"""The table of `images.generate`'s parameters in docs/how-to/serve.md: `python tests/docs/openai_table.py` writes it.

tests/llmdiff/serving/test_openai_client.py sends every value in it.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # where this is run as a command

from docs.written import markdown_table, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "serve.md"

Values = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What the server does with some values of a parameter: acts on them, accepts them without effect, answers 400."""

    works: Values = ()
    ignored: Values = ()
    refused: Values = ()
    note: str = ""


# Every parameter in the signature of the client's `images.generate`, in its order; the server has the aliases
# gpt-image-1 and dall-e-3, and `--size-policy nearest`.
GENERATE: Mapping[str, Parameter] = {
    "prompt": Parameter(works=("a red cat",), refused=("", " "), note="up to 32,000 characters"),
    "background": Parameter(ignored=("auto", "opaque"), refused=("transparent",)),
    "complexity": Parameter(ignored=("low", "medium", "high")),
    "frame_count": Parameter(refused=(4,), note="one picture, no animation"),
    "frame_duration_ms": Parameter(refused=(100,), note="one picture, no animation"),
    "model": Parameter(
        works=("openmoji", "gpt-image-1", "dall-e-3"),
        note="the adapter's name or a `--model-alias`; another one is a 404",
    ),
    "moderation": Parameter(ignored=("auto", "low")),
    "n": Parameter(works=(1, 2, 10), refused=(0, 11), note="seeds in a row"),
    "output_compression": Parameter(works=(100,), refused=(-1, 101), note="below 100 for JPEG and WebP only"),
    "output_format": Parameter(works=("png", "jpeg", "webp"), refused=("gif", "svg")),
    "partial_images": Parameter(ignored=(0, 3), refused=(4,)),
    "quality": Parameter(
        ignored=("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"),
        note="`num_inference_steps` in `extra_body` sets it",
    ),
    "response_format": Parameter(works=("url", "b64_json"), refused=("file",)),
    "safety_identifier": Parameter(ignored=("somebody",)),
    "size": Parameter(
        works=("auto", "1024x1024", "1536x1024", "256x256"),
        refused=("big",),
        note="see `--size-policy`",
    ),
    "stream": Parameter(ignored=(False,), refused=(True,)),
    "style": Parameter(ignored=("vivid", "natural")),
    "svg": Parameter(refused=({},), note="pictures are pixels"),
    "user": Parameter(ignored=("somebody",)),
}


def table() -> str:
    """Return the table in Markdown."""
    rows = [
        [f"`{name}`", *map(_cell, (one.works, one.ignored, one.refused)), one.note]
        for name, one in GENERATE.items()
    ]
    return markdown_table(["parameter", "works", "accepted, no effect", "400", ""], rows)


def _cell(values: Values) -> str:
    return ", ".join(f"`{json.dumps(one)}`" for one in values)


if __name__ == "__main__":
    write(PAGE, {"openai": table()})
