"""Captions without pictures, with optional plain wordings: the data for training from captions alone."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from llmdiff.errors import DataError, InputFileError
from llmdiff.files import is_blank, read_text, text_lines
from llmdiff.training.folders import CAPTION_KEYS, records, texts_of
from llmdiff.training.rows import Row

SUFFIXES = (".txt", ".jsonl", ".csv")


class CaptionSource:
    """Captions by index, as samples whose pictures are empty files of the training's size.

    `rows` has for each sample its key, captions, plain wordings and a problem or None.
    """

    def __init__(self, rows: Sequence[tuple[str, list[str], list[str], str | None]], *, side_px: int) -> None:
        self.rows, self.side_px = rows, side_px
        self.fingerprint = sha256(json.dumps(rows).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """Return one row."""
        key, captions, plain, problem = self.rows[index]
        return Row(
            key=key,
            captions=captions,
            plain_captions=plain,
            content=bytes,
            size_px=(self.side_px, self.side_px),
            problem=problem,
        )


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
    rows: list[tuple[str, list[str], list[str], str | None]] = []
    if path.suffix == ".txt":
        lines = enumerate(text_lines(read_text(path)), 1)
        rows = [(f"line {number}", [line], [], None) for number, line in lines if not is_blank(line)]
    else:
        for number, found, problem in records(path, needed=None):
            texts: tuple[list[str], list[str], str | None] = ([], [], problem)
            if problem is None:
                try:
                    texts = texts_of(found)
                except (TypeError, AttributeError):
                    texts = ([], [], "not a JSON object")
            rows.append((f"line {number}", *texts))
    if not rows:
        raise DataError(
            f"captions {path} has none: expected a caption on each line, in .jsonl and .csv as "
            f"{' or '.join(CAPTION_KEYS)}"
        )
    return CaptionSource(rows, side_px=side_px)


def read_captions(path: Path) -> list[str]:
    """Return the captions of a file and raise an error for any bad row, see `captions_source`.

    Raises:
        InputFileError, DataError: see `captions_source`; or a row cannot be used.
    """
    source = captions_source(path, side_px=1)
    texts: list[str] = []
    for index in range(len(source)):
        row = source.row(index)
        problem = row.problem or ("no caption" if not any(map(str.strip, row.texts)) else None)
        if problem is not None:
            raise DataError(f"captions {path}, {row.key}: {problem}: correct or remove the line")
        texts += [text for text in row.texts if text.strip()]
    return texts
