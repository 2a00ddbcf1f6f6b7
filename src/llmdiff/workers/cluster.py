"""Workers on a Ray cluster (the extra `ray`)."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from llmdiff.errors import LLMDiffError, first_line
from llmdiff.workers.processes import Work, Worker

_OBJECT_STORE_BYTES = 2**28


class ActorSlot:
    """An actor of Ray."""

    def __init__(self, ray: Any, make: Callable[[], Work], gpus: int) -> None:
        self.lost: tuple[type[Exception], ...] = (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
        )
        self._ray = ray
        kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(Worker)
        self._actor = kind.remote(make)

    def submit(self, args: Any) -> "Future[Any]":
        """Begin a job."""
        future: Future[Any] = self._actor.run.remote(args).future()
        return future

    def stop(self) -> None:
        """End the actor."""
        self._ray.kill(self._actor)

    close = stop


@contextmanager
def cluster(count: int) -> Iterator[Any]:
    """Return a context with Ray; a cluster that was already running keeps running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.exceptions

    if ray.is_initialized():
        yield ray
        return
    here: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        here = {
            "num_cpus": count,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    except Exception as error:  # Ray has no exception class for this
        raise LLMDiffError(
            f"Ray does not start ({first_line(error)}): correct $RAY_ADDRESS, or unset it to use this machine; under "
            "heavy load, try again"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
