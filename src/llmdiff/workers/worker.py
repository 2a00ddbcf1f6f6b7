"""A worker's side of a job: make the work on first use, return a user's error as a value."""

from collections.abc import Callable
from typing import Any

from llmdiff.errors import LLMDiffError

Work = Callable[[Any], Any]
"""Does one job: its arguments => its result. Both travel between processes by pickle."""

Answer = tuple[Any, LLMDiffError | None]
"""A result, or the user's error, which as an exception would carry a traceback through three processes."""


class Worker:
    """Makes its work when the first job comes."""

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
