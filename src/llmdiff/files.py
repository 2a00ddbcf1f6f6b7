"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdiff.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A context with a place beside `path` to write to; at its end that takes `path`'s place, in one step.

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
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): choose another place, on a disk with room"
        ) from error
