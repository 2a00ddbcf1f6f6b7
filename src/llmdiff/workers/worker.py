"""The worker's part of a job: create the work function on first use, return a user's error as a value."""

from collections.abc import Callable
from typing import Any

from llmdiff.errors import LLMDiffError

Work = Callable[[Any], Any]
"""Does one job: arguments => result. Both are pickled between processes."""

Answer = tuple[Any, LLMDiffError | None]
"""A result, or the user's error as a value, since a raised exception would carry tracebacks of several processes."""


class Worker:
    """Creates its work function when the first job arrives."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._make = make
        self._work: Work | None = None

    def run(self, args: Any) -> Answer:
        """Do one job."""
        try:
            if self._work is None:
                self._work = self._make()
            return self._work(args), None
        except LLMDiffError as error:
            return None, error
