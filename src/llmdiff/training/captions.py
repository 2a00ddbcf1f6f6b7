"""Captions without pictures, with optional plain wordings: the data for training from captions alone."""

import json
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from llmdiff.errors import DataError, InputFileError
from llmdiff.files import is_blank, read_text, text_lines
from llmdiff.training.folders import CAPTION_KEYS, records, texts_of
from llmdiff.training.rows import Row

SUFFIXES = (".txt", ".jsonl", ".csv")


class CaptionSource:
    """Captions by index, as samples whose pictures are empty files of the training's size."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        told = [(row.key, row.captions, row.plain_captions, row.problem) for row in rows]
        self.fingerprint = sha256(json.dumps(told).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """Return one row."""
        return self.rows[index]


def captions_source(path: Path, *, side_px: int) -> CaptionSource:
    """Return the captions of a file.

    A .txt file has one caption on each line. A line of a .jsonl file, or a row of a .csv file, has `text`, `caption` or
    `captions`, and possibly as many `plain` captions: the same in words that the base's own text encoder knows.

    Raises:
        InputFileError: the file cannot be read, or is of another kind.
        DataError: it has no captions, or a .csv file lacks a column of captions.
    """
    if path.suffix not in SUFFIXES:
        raise InputFileError(
            f"captions {path} ends in {path.suffix!r}, expected a file that ends in one of {', '.join(SUFFIXES)}"
        )
    found: list[tuple[str, list[str], list[str], str | None]] = []
    if path.suffix == ".txt":
        lines = enumerate(text_lines(read_text(path)), 1)
        found = [(f"line {number}", [line], [], None) for number, line in lines if not is_blank(line)]
    else:
        for number, content, problem in records(path, needed=None):
            texts: tuple[list[str], list[str], str | None] = ([], [], problem)
            if problem is None:
                try:
                    texts = texts_of(content)
                except (TypeError, AttributeError):
                    texts = ([], [], "not a JSON object")
            found.append((f"line {number}", *texts))
    if not found:
        raise DataError(
            f"captions {path} has none: expected a caption on each line, in .jsonl and .csv as "
            f"{' or '.join(CAPTION_KEYS)}"
        )
    made = partial(Row, content=bytes, size_px=(side_px, side_px))
    return CaptionSource(
        [
            made(key=key, captions=texts, plain_captions=plain, problem=problem)
            for key, texts, plain, problem in found
        ]
    )


def read_captions(path: Path) -> list[str]:
    """Return the captions of a file and raise an error for any bad row, see `captions_source`.

    Raises:
        InputFileError, DataError: see `captions_source`; or a row cannot be used.
    """
    texts: list[str] = []
    for row in captions_source(path, side_px=1).rows:
        problem = row.problem or ("no caption" if not any(map(str.strip, row.texts)) else None)
        if problem is not None:
            raise DataError(f"captions {path}, {row.key}: {problem}: correct or remove the line")
        texts += [text for text in row.texts if text.strip()]
    return texts
