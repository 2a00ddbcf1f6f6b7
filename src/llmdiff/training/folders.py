"""Pictures of a folder, with captions from `metadata.jsonl` or from a text file beside each."""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from llmdiff.environment import check_extra
from llmdiff.errors import DataError, InputFileError
from llmdiff.files import is_blank, read_bytes, read_text, text_lines
from llmdiff.training.rows import PICTURE_SUFFIXES, is_whole_text, shown
from llmdiff.training.sources import TableSource

_METADATA = "metadata.jsonl"
_MAX_METADATA_BYTES = 16 * 2**30
_CAPTION_KEYS = ("text", "caption", "captions")
_BOM = b"\xef\xbb\xbf"


def folder_source(folder: Path) -> TableSource:
    """Return the pictures of a folder, with captions from `metadata.jsonl` or from a text file beside each.

    A line of `metadata.jsonl` has `file_name`, in this folder, and `text`, `caption` or `captions`. Without that
    file, `cat.jpg`'s captions are the lines of `cat.txt`. The fingerprint has the size and time of every picture.

    Raises:
        DataError: no such folder, or no pictures in it.
        InputFileError: its metadata.jsonl cannot be read.
    """
    check_extra("train", "datasets")
    import datasets

    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder: expected pictures with {_METADATA} or text files beside them"
        )
    metadata = folder / _METADATA
    rows = list(_metadata_rows(metadata) if os.path.lexists(metadata) else _text_file_rows(folder))
    if not rows:
        raise DataError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}) and no {_METADATA}")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    digest = sha256(json.dumps(columns, sort_keys=True).encode())
    digest.update(json.dumps([_stamp(path) for path in columns["path"]]).encode())
    table = datasets.Dataset.from_dict(columns)
    return TableSource(table, image="path", captions=["captions"], key="key", fingerprint=digest.hexdigest())


def _stamp(path: str) -> tuple[int, int] | None:
    """What differs once a picture is painted over."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _metadata_rows(metadata: Path) -> Iterator[dict[str, Any]]:
    content = read_bytes(metadata, max_bytes=_MAX_METADATA_BYTES).removeprefix(_BOM)
    # Of bytes, unlike of texts, these are the lines that \n, \r\n and \r end.
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        row: dict[str, Any] = {"key": f"line {number}", "path": "", "captions": [], "problem": None}
        try:
            found = json.loads(line.decode())
            row["key"] = shown(name := found["file_name"])
            captions: Any = next((found[key] for key in _CAPTION_KEYS if found.get(key) is not None), [])
        except UnicodeDecodeError:
            row["problem"] = "metadata: not UTF-8"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            row["problem"] = "metadata: not a JSON object with file_name"
        else:
            listed = (
                [text for text in captions if text is not None] if isinstance(captions, list) else [captions]
            )
            # One column, one type: what is no text is said to be none.
            row["captions"] = [
                text if isinstance(text, str) and is_whole_text(text) else "" for text in listed
            ]
            if any(not isinstance(text, str) for text in listed):
                row["problem"] = "caption is not a text"
            elif not all(map(is_whole_text, listed)):
                row["problem"] = "caption has half a character (a lone surrogate)"
            if not is_whole_text(name):
                row["problem"] = "metadata: file_name has half a character (a lone surrogate)"
            elif PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                row["problem"] = "metadata: file_name lies outside of the folder"
            else:
                row["path"] = str(metadata.parent / name)
        yield row


def _text_file_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
        problem: str | None = None
        captions: list[str] = []
        try:
            captions = [
                line for line in text_lines(read_text(path.with_suffix(".txt"))) if not is_blank(line)
            ]
        except InputFileError as error:
            if isinstance(error.__cause__, UnicodeDecodeError):
                problem = "caption is not UTF-8"
            elif isinstance(error.__cause__, FileNotFoundError):
                problem = "no text file with a caption"
            else:
                problem = f"caption: {shown(str(error))}"
        if not is_whole_text(str(path)):
            problem = "file name is not UTF-8"
        key = shown(path.relative_to(folder).as_posix())
        yield {"key": key, "path": shown(str(path)), "captions": captions, "problem": problem}
