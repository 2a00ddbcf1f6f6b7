"""Read and write the lines of published files; an error names the file and the line."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llmdiff.errors import ConfigError
from llmdiff.files import is_blank, parse_json, read_text, text_lines, write_whole

T = TypeVar("T")


def json_lines(file: Path, what: str, convert: Callable[[int, Any], T]) -> list[T]:
    """Return `convert(index, value)` for every line of JSON; blank lines are skipped.

    `what`: the file that is expected, for errors.

    Raises:
        InputFileError: the file cannot be read.
        ConfigError: a line is no JSON, or `convert` raised KeyError, TypeError or ValueError.
    """
    found: list[T] = []
    for number, line in enumerate(text_lines(read_text(file)), start=1):
        if not is_blank(line):
            with _failure_named(f"{file}, line {number}", what):
                found.append(convert(len(found), parse_json(line)))
    return found


def csv_rows(
    file: Path, what: str, columns: Sequence[str], convert: Callable[[int, Mapping[str, str]], T]
) -> list[T]:
    """Return `convert(index, row)` for every row of a table with these columns.

    Raises:
        InputFileError: the file cannot be read.
        ConfigError: a column is missing, or `convert` raised KeyError, TypeError or ValueError.
    """
    table = csv.DictReader(io.StringIO(read_text(file), newline=""))
    missing = [column for column in columns if column not in (table.fieldnames or ())]
    if missing:
        raise ConfigError(f"{file}: no column {missing[0]!r}, expected {what}")
    found: list[T] = []
    for index, row in enumerate(table):
        with _failure_named(f"{file}, row {index + 1}", what):
            found.append(convert(index, row))
    return found


def write_json_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write one object per line."""
    write_whole(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@contextmanager
def _failure_named(place: str, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{place}: {reason}, expected {what}") from error
