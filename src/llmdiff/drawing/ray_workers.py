"""Work shared out among processes and machines by Ray Data (the extra `ray`)."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError, LLMDiffError, first_line
from llmdiff.files import text_lines

# What passes through is a few lines of JSON for each item; results lie on disk.
_OBJECT_STORE_BYTES = 2**28
_BLOCKS_PER_WORKER = 4
# A worker that dies may have been taken away by its machine; twice on one item is no accident.
_RETRIES = 1


class Worker(Protocol):
    """What a process makes once, of plain arguments, and then calls with one item after the other."""

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what came of an item."""
        ...


def on_workers(
    kind: type[Worker],
    init_args: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    gpus_each: float = 0.0,
) -> Iterator[Mapping[str, Any]]:
    """Return each item's result as it comes, in any order, from as many processes as `workers`.

    They run on the cluster that $RAY_ADDRESS names, or on this machine. Arguments, items and results are such as JSON
    has. All machines have to see the same folders.

    Raises:
        ConfigError: fewer than one worker.
        LLMDiffError: what a worker raised; Ray is not installed, or a worker died.
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
            # Ray's own default is to try for ever an item that kills its worker.
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
                f"a Ray worker failed ({reason}); what was done is kept: run again to go on"
            ) from error


class _Guarded:
    """A worker whose own errors travel as a line of text, not as a traceback through three processes."""

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
    """Return a context with Ray; one that was running before keeps running."""
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
    except Exception as error:  # Ray has no class of its own for it
        raise LLMDiffError(
            f"Ray does not start ({first_line(error)}): mend $RAY_ADDRESS, or leave it out to use this machine; under "
            "heavy load, try again"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
