"""Read pictures of a folder, with captions from a metadata file or from a text file beside each picture."""

import csv
import io
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

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_SUFFIXES = (".txt", ".caption")
_MAX_METADATA_BYTES = 16 * 2**30
CAPTION_KEYS = ("text", "caption", "captions")
_BOM = b"\xef\xbb\xbf"


def folder_source(folder: Path) -> TableSource:
    """Return the pictures of a folder with their captions.

    A line of `metadata.jsonl`, or a row of `metadata.csv`, has `file_name`, relative to the folder, `text`, `caption`
    or `captions`, and possibly as many `plain` captions, in words that the base's own text encoder knows. Without a
    metadata file, the captions of `cat.jpg` are the lines of `cat.txt` or `cat.caption`. The fingerprint covers the
    size and modification time of every picture.

    Raises:
        DataError: the folder does not exist, has no pictures, or has both metadata files.
        InputFileError: the metadata file cannot be read.
    """
    check_extra("train", "datasets")
    import datasets

    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: expected one with pictures and {' or '.join(_METADATA)}, or text files beside "
            "the pictures"
        )
    metadata = [folder / name for name in _METADATA if os.path.lexists(folder / name)]
    if len(metadata) > 1:
        raise DataError(f"{folder} has both {' and '.join(_METADATA)}: keep one of them")
    rows = list(_metadata_rows(metadata[0]) if metadata else _text_file_rows(folder))
    if not rows:
        raise DataError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}) and no {_METADATA[0]}")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    digest = sha256(json.dumps(columns, sort_keys=True).encode())
    digest.update(json.dumps([_stamp(path) for path in columns["path"]]).encode())
    table = datasets.Dataset.from_dict(columns)
    return TableSource(
        table, image="path", captions=["captions"], plain="plain", key="key", fingerprint=digest.hexdigest()
    )


def _stamp(path: str) -> tuple[int, int] | None:
    """Return the size and modification time of a file, None if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _metadata_rows(metadata: Path) -> Iterator[dict[str, Any]]:
    for number, found, problem in records(metadata, needed="file_name"):
        row: dict[str, Any] = {
            "key": f"line {number}",
            "path": "",
            "captions": [],
            "plain": [],
            "problem": problem,
        }
        try:
            row["key"] = shown(name := found["file_name"])
            row["captions"], row["plain"], row["problem"] = texts_of(found)
        except (KeyError, TypeError, AttributeError):
            row["problem"] = problem or "metadata: not a JSON object with file_name"
        else:
            if not is_whole_text(name):
                row["problem"] = "metadata: file_name has half a character (a lone surrogate)"
            elif PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                row["problem"] = "metadata: file_name lies outside of the folder"
            else:
                row["path"] = str(metadata.parent / name)
        yield row


def records(metadata: Path, *, needed: str | None) -> Iterator[tuple[int, Any, str | None]]:
    """Yield line number, content and problem (or None) of every line of a .jsonl or row of a .csv file.

    `needed` is a required column.

    Raises:
        InputFileError: the file cannot be read.
        DataError: a .csv file lacks the required column or a column of captions.
    """
    content = read_bytes(metadata, max_bytes=_MAX_METADATA_BYTES).removeprefix(_BOM)
    return (
        _csv_records(content, metadata.name, needed) if metadata.suffix == ".csv" else _json_records(content)
    )


def texts_of(found: Any) -> tuple[list[str], list[str], str | None]:
    """Return a row's captions, their plain wordings, and a problem or None.

    Raises:
        TypeError, AttributeError: the row is not a JSON object.
    """
    captions: Any = next((found[key] for key in CAPTION_KEYS if found.get(key) is not None), [])
    plain: Any = found.get("plain") or []
    listed = [text for text in captions if text is not None] if isinstance(captions, list) else [captions]
    problem = None
    if any(not isinstance(text, str) for text in listed):
        problem = "caption is not a text"
    elif not all(map(is_whole_text, listed)):
        problem = "caption has half a character (a lone surrogate)"
    # A table's column has one type: non-texts are reported here as a problem. `check` reports those in `plain`.
    kept = (
        [text if isinstance(text, str) and is_whole_text(text) else "" for text in some]
        for some in (listed, plain if isinstance(plain, list) else [plain])
    )
    return next(kept), next(kept), problem


def _json_records(content: bytes) -> Iterator[tuple[int, Any, str | None]]:
    """Yield the number, content (None: not JSON) and problem of every line."""
    # `bytes.splitlines` splits only at \n, \r\n and \r; `str.splitlines` at more characters.
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode()), None
        except UnicodeDecodeError:
            yield number, None, "metadata: not UTF-8"
        except (ValueError, RecursionError):
            yield number, None, None


def _csv_records(content: bytes, file: str, needed: str | None) -> Iterator[tuple[int, Any, str | None]]:
    """Yield the number of the last line, the values by column and the problem of every row."""
    # Bytes that are not UTF-8 become lone surrogates, which are reported for each row.
    lines = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""), strict=True)
    try:
        columns = next(lines, [])
    except csv.Error as error:
        raise DataError(f"{file}: its first line is not CSV ({error}): quote texts with commas") from error
    has_needed = needed is None or needed in columns
    if not has_needed or not set(CAPTION_KEYS) & set(columns) or len(set(columns)) < len(columns):
        expected = ("" if needed is None else f"{needed} and ") + " or ".join(CAPTION_KEYS)
        raise DataError(
            f"{file} has the columns {', '.join(map(shown, columns)) or 'of an empty file'}; expected {expected}, each "
            "once, in its first line"
        )
    while True:
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.line_num, None, f"metadata: not CSV ({error})"
            continue
        if not values:
            continue
        if len(values) != len(columns):
            yield lines.line_num, None, f"metadata: {len(values)} values for {len(columns)} columns"
            continue
        row = dict(zip(columns, values, strict=True))
        if not all(map(is_whole_text, values)):
            yield lines.line_num, None, "metadata: not UTF-8"
        elif needed is not None and not row[needed]:
            yield lines.line_num, None, f"metadata: no {needed}"
        else:
            yield lines.line_num, {name: value or None for name, value in row.items()}, None


def _text_file_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
        problem: str | None = None
        captions: list[str] = []
        beside = [path.with_suffix(suffix) for suffix in _CAPTION_SUFFIXES]
        written = [file for file in beside if os.path.lexists(file)]
        try:
            captions = [line for line in text_lines(read_text((written or beside)[0])) if not is_blank(line)]
            if len(written) > 1:
                problem = f"two caption files ({' and '.join(_CAPTION_SUFFIXES)}): keep one"
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
        yield {"key": key, "path": shown(str(path)), "captions": captions, "plain": [], "problem": problem}
