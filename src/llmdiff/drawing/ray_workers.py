"""Distribute work over processes and machines with Ray Data (the extra `ray`)."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError, LLMDiffError, first_line
from llmdiff.files import text_lines

# Items and results are a few lines of JSON each; pictures and tensors are written to disk.
_OBJECT_STORE_BYTES = 2**28
_BLOCKS_PER_WORKER = 4
# One retry: a worker may be killed by its machine, but twice on the same item has another cause.
_RETRIES = 1


class Worker(Protocol):
    """Built once per process from plain arguments, then called with one item after the other."""

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result of an item."""
        ...


def on_workers(
    kind: type[Worker],
    init_args: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    gpus_each: float = 0.0,
) -> Iterator[Mapping[str, Any]]:
    """Process the items in `workers` processes and yield each result as it completes, in any order.

    The processes run on the cluster of $RAY_ADDRESS, or on this machine. Arguments, items and results must be
    serialisable as JSON. All machines must share the same folders.

    Raises:
        ConfigError: `workers` is below 1.
        LLMDiffError: a worker raised an error or died, or Ray is not installed.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    check_extra("ray", "ray", "pyarrow", "pandas")
    if not items:
        return
    with _cluster(workers) as ray:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"item": json.dumps(item)} for item in items]
        blocks = min(len(rows), _BLOCKS_PER_WORKER * workers)
        answers = ray.data.from_items(rows, override_num_blocks=blocks).map(
            _Guarded,
            fn_constructor_args=(kind, dict(init_args)),
            concurrency=workers,
            num_cpus=1,
            num_gpus=gpus_each,
            # By default, Ray retries an item that kills its worker without limit.
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
        )
        try:
            for row in answers.iter_rows():
                if row["error"]:
                    raise LLMDiffError(row["error"])
                yield json.loads(row["result"])
        except ray.exceptions.RayError as error:
            reason = text_lines(str(error).strip() or type(error).__name__)[-1]
            raise LLMDiffError(
                f"a Ray worker failed ({reason}); completed items are kept: run again to continue"
            ) from error


class _Guarded:
    """A worker that returns its errors as a line of text instead of a traceback through three processes."""

    def __init__(self, kind: type[Worker], init_args: dict[str, Any]) -> None:
        self._kind, self._init_args = kind, init_args
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._worker is None:
                make: Any = self._kind
                self._worker = make(**self._init_args)
            return {"result": json.dumps(self._worker(json.loads(row["item"]))), "error": ""}
        except LLMDiffError as error:
            return {"result": "", "error": str(error)}


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Return a context with Ray; a cluster that was already running keeps running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data
    import ray.exceptions

    if ray.is_initialized():
        yield ray
        return
    here: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        here = {
            "num_cpus": workers,
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
