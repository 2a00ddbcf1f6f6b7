"""A worker, and workers in processes of this machine."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from llmdiff.errors import LLMDiffError

Work = Callable[[Any], Any]
"""Does one job: arguments => result. Both are pickled between processes."""

Answer = tuple[Any, LLMDiffError | None]
"""A result, or the user's error as a value, since a raised exception would carry tracebacks of several processes."""

# For jobs that save their state on SIGTERM.
_GRACE_S = 60.0


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


class ProcessSlot:
    """A pool of one process, so that a kill identifies the lost job."""

    lost: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, blob: bytes, threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        # The pipe breaks when this process ends for any reason.
        self._theirs, self._ours = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_set_up, initargs=(self._theirs, blob, threads, gpu)
        )

    def submit(self, args: Any) -> "Future[Any]":
        """Begin a job."""
        return self._pool.submit(_run, args)

    def stop(self) -> None:
        """End the process with SIGTERM."""
        self._ours.close()

    def close(self) -> None:
        """Wait until the process has ended."""
        self._pool.shutdown(cancel_futures=True)
        self._ours.close()
        self._theirs.close()


# In a worker's process: the pickled `make`, and the worker.
_blob = b""
_worker: Worker | None = None


def _set_up(parent: Connection, blob: bytes, threads: int, gpu: str | None) -> None:
    global _blob
    _blob = blob
    # For libraries that are imported later.
    os.environ["TQDM_DISABLE"] = "1"
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _end_with(parent: Connection) -> None:
    try:
        parent.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)


def _run(args: Any) -> Answer:
    global _worker
    if _worker is None:
        _worker = Worker(pickle.loads(_blob))  # from the parent
    try:
        return _worker.run(args)
    except SystemExit:  # on SIGTERM: the job is not finished
        os._exit(1)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs, as in $CUDA_VISIBLE_DEVICES."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
