"""Files and folders that are written whole or not at all: beside their place first, then moved there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdiff.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Return a context with a place beside `path` to write to; at its end that takes `path`'s place, in one step.

    After an error nothing is left of it, and what stood at `path` still stands. Missing folders are made.

    Raises:
        OutputError: the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
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
    """Write a file, text as UTF-8, whole or not at all; returns nothing.

    Raises:
        OutputError: the place cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Return a context with a fresh folder beside `path`, which takes `path`'s place when nothing went wrong.

    A folder that is there already is moved aside first, so a kill in between leaves none: write to names that are
    new where that matters.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = path.with_name(f".{path.name}.partial"), _old(path)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def delete_folder(path: Path) -> None:
    """Delete a folder whole or not at all: a kill leaves it as it was, or a hidden rest that `sweep` deletes."""
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(path, old)
    shutil.rmtree(old)


def sweep(parent: Path) -> None:
    """Delete what kills have left of folders that were being deleted; returns nothing."""
    for rest in parent.glob(".*.old"):
        shutil.rmtree(rest, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def not_writable(path: Path, error: OSError) -> OutputError:
    """The error of a place that cannot be written."""
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}): choose another place, on a disk with room"
    )


def writable_folder(out: str | Path) -> Path:
    """The folder, made if need be, after a trial that it can be written.

    Raises:
        OutputError: it cannot.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".writable.partial"
        trial.write_text("")
        trial.unlink()
    except OSError as error:
        raise OutputError(
            f"out {folder} cannot be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return folder
