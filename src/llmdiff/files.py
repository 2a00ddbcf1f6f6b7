"""Read users' files with size limits; write files and folders atomically."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmdiff.errors import InputFileError, OutputError, PromptError

MAX_TEXT_BYTES = 64 * 2**20
MAX_PICTURE_BYTES = 512 * 2**20
# A process that is still writing does not pause for so long.
IDLE_S = 24 * 3600.0

# Only these end a line. `str.splitlines` also splits at U+2028, U+0085, form feeds and others.
_LINE_END = re.compile(r"\r\n|\n|\r")
# Characters without a glyph that `str.isspace` does not count: the byte-order mark and the zero-width space.
_INVISIBLE = "\ufeff\u200b"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file, without blocking on a pipe or a device.

    Raises:
        InputFileError: the file is missing, not a regular file, larger than `max_bytes` or not readable.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputFileError(f"{path} is not a regular file: pass one")
            if status.st_size > max_bytes:
                raise InputFileError(
                    f"{path} has {status.st_size:,} bytes, expected at most {max_bytes:,}: is it the right file?"
                )
            # Read the file's size first: Python allocates memory for the whole requested size.
            content = file.read(status.st_size + 1)
            if len(content) > status.st_size:  # it grew, or its size is not reported correctly (/proc)
                content += file.read(max_bytes + 1 - len(content))
    except InputFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputFileError(f"{str(path)!r} cannot be read ({reason}): check the path") from error
    if len(content) > max_bytes:
        raise InputFileError(f"{path} has more than {max_bytes:,} bytes: is it the right file?")
    return content


def read_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return a text file's content: UTF-8, without the byte-order mark that some editors write.

    Raises:
        InputFileError: see `read_bytes`, or the file is not UTF-8.
    """
    content = read_bytes(path, max_bytes=max_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(
            f"{path} is not UTF-8 (byte {error.start}: {content[error.start]:#04x}): save it as UTF-8"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputFileError: see `read_text`, or the file is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputFileError(f"{path} is not JSON ({error}): write it again") from error


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_lines(text: str) -> list[str]:
    r"""Return the lines of a text, split at \n, \r\n and \r only, without their ends."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def prompt_lines(path: Path) -> list[str]:
    """Return the prompts of a text file with one per line, stripped; blank lines are skipped.

    Raises:
        InputFileError: see `read_text`.
    """
    lines = (clean_text(str(path), line).strip() for line in text_lines(read_text(path)))
    return [line for line in lines if line]


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return not _without_invisible(text).strip()


def clean_text(name: str, text: str) -> str:
    """Return a prompt without byte-order marks and zero-width spaces at its ends.

    Editors and web pages insert these invisibly, and a tokenizer would encode them as a word.

    Raises:
        PromptError: the text has a lone surrogate, which no tokenizer accepts; `name` is the argument's name.
    """
    half = _SURROGATE.search(text)
    if half is not None:
        raise PromptError(
            f"{name} is not valid UTF-8 (U+{ord(half[0]):04X} at character {half.start()} is half a character): set "
            "the terminal or editor to UTF-8 and write it again"
        )
    seen = [place for place, char in enumerate(text) if not char.isspace() and char not in _INVISIBLE]
    if not seen:
        return _without_invisible(text)
    start, end = seen[0], seen[-1] + 1
    return _without_invisible(text[:start]) + text[start:end] + _without_invisible(text[end:])


def _without_invisible(text: str) -> str:
    return "".join(char for char in text if char not in _INVISIBLE)


def check_replaceable(path: Path) -> None:
    """Check that nothing but a regular file would be replaced by writing to `path`.

    Raises:
        OutputError: the path is a folder, a device or a pipe, or a link to one.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} exists and is not a regular file: write to another place")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Return a context with a temporary path beside `path`, which replaces `path` atomically on exit.

    After an error the temporary file is deleted and `path` is unchanged. Missing folders are created.

    Raises:
        OutputError: `path` cannot be written, or is a device, a pipe or a folder, which are never replaced.
    """
    partial = _beside(path, "partial")
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OutputError:
        raise
    except OSError as error:
        raise not_writable(path, error) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8.

    Raises:
        OutputError: `path` cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Return a context with a new folder beside `path`, which replaces `path` on exit without an error.

    Several processes may write the same folder: each has its own temporary folder, and the last one stays. An existing
    folder is moved aside first, so a kill in between leaves none: use a new name if that matters.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _beside(path, "partial"), _beside(path, "old")
    name = glob.escape(path.name[:40])
    sweep(path.parent, idle_s=IDLE_S, patterns=(f".{name}.*.partial", f".{name}.*.old"))
    try:
        partial.mkdir()
        yield partial
        _replace_folder(path, partial, old)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _replace_folder(path: Path, new: Path, old: Path) -> None:
    """Move `path`, if it exists, to `old` and `new` to `path`."""
    while True:
        with suppress(FileNotFoundError):
            os.rename(path, old)
        try:
            os.rename(new, path)
            return
        except OSError as error:
            # Another process has put its own folder there since.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(old, ignore_errors=True)


def delete_folder(path: Path) -> None:
    """Delete a folder atomically: a kill leaves it unchanged, or a hidden remainder that `sweep` deletes."""
    old = _beside(path, "old")
    os.rename(path, old)
    shutil.rmtree(old)


def sweep(parent: Path, *, idle_s: float = 0.0, patterns: Iterable[str] = (".*.old", ".*.partial")) -> None:
    """Delete the remainders of files and folders whose writing or deletion was interrupted by a kill.

    If other processes may be writing, `idle_s` skips files that changed within that many seconds.
    """
    for rest in [place for pattern in patterns for place in parent.glob(pattern)]:
        with suppress(OSError):
            if time.time() - rest.stat().st_mtime < idle_s:
                continue
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink()


def _beside(path: Path, ending: str) -> Path:
    """Return a hidden path beside `path` that no other process uses."""
    # Only a part of the name, which may be nearly as long as the system allows.
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.{ending}")


def not_writable(path: Path, error: OSError) -> OutputError:
    """Return the error for a path that cannot be written."""
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}): choose another place, on a disk with room"
    )


def writable_folder(out: str | Path) -> Path:
    """Return the folder, created if needed, after checking that it is writable.

    Raises:
        OutputError: it is not writable.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(
            dir=folder
        ):  # unnamed, so that other processes may check at the same time
            pass
    except OSError as error:
        raise OutputError(
            f"out {folder} cannot be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return folder
