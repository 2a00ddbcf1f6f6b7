"""In-memory store of the pictures behind URLs, until they expire."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable


class ExpiringPictures:
    """Picture files by random names; they expire after `lifetime_s`, the oldest earlier if space runs out."""

    def __init__(
        self, *, max_bytes: int, lifetime_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._pictures: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def add(self, png: bytes, suffix: str = "") -> str:
        """Store a picture and return its name, which ends in `suffix`."""
        name = f"{secrets.token_urlsafe(24)}{suffix}"
        self._pictures[name] = (self._clock() + self._lifetime_s, png)
        self._bytes += len(png)
        # All have the same lifetime, so the first added is the first to expire.
        while self._bytes > self._max_bytes and len(self._pictures) > 1:
            self._drop_oldest()
        self._expire()
        return name

    def get(self, name: str) -> bytes | None:
        """Return the picture, None if the name is unknown or has expired."""
        self._expire()
        found = self._pictures.get(name)
        return None if found is None else found[1]

    def _expire(self) -> None:
        now = self._clock()
        while self._pictures and next(iter(self._pictures.values()))[0] <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, png) = self._pictures.popitem(last=False)
        self._bytes -= len(png)
