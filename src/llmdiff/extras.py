"""What some verbs need beyond the library's own dependencies."""

import importlib.util

from llmdiff.errors import LLMDiffError


def check_extra(extra: str, *packages: str) -> None:
    """Return nothing if these packages are installed.

    Raises:
        LLMDiffError: one is missing; says which extra brings it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise LLMDiffError(
            f"{missing[0]} is not installed, expected the extra {extra!r}: pip install 'llmdiff-adapter[{extra}]'"
        )
