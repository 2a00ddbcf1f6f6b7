"""Run jobs in this process, in several processes of this machine, or on a Ray cluster (the extra `ray`)."""

import logging
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from llmdiff.checks.bounds import PROCESSES
from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError, LLMDiffError, first_line
from llmdiff.workers.cluster import ActorSlot, cluster
from llmdiff.workers.processes import ProcessSlot, Work, Worker, visible_gpus

# One retry: a second kill with the same job probably has the job as its cause.
_RETRIES = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where jobs run: in `count` processes of this machine or, with `ray`, of the cluster of $RAY_ADDRESS.

    A count of 1 without Ray is this process. With Ray, all machines must share the same folders.

    Raises:
        ConfigError: `count` is below 1.
    """

    count: int = 1
    ray: bool = False

    def __post_init__(self) -> None:
        PROCESSES.check("workers", self.count)

    @property
    def here(self) -> bool:
        """Return whether jobs run in this process."""
        return self.count == 1 and not self.ray


HERE = Workers()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job: a name for messages, the arguments, and the name of a job that must be done first."""

    name: str
    args: Any
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job with its result, or with the error that ended it."""

    job: Job
    result: Any = None
    error: LLMDiffError | None = None

    def checked(self) -> Any:
        """Return the result.

        Raises:
            LLMDiffError: the job ended with this error.
        """
        if self.error is not None:
            raise self.error
        return self.result


def run_jobs(
    make: Callable[[], Work], jobs: Sequence[Job], workers: Workers, *, device: str = "cpu"
) -> Iterator[Done]:
    """Run the jobs and yield each when it ends, in any order; every worker with a job calls `make` once.

    If a worker is killed, its job is repeated in a new process; the second time, the job ends with an error that names
    it. Jobs that come `after` a job with an error are not run. Leaving the loop early ends all workers with SIGTERM.
    On `device` "cuda" every worker has its own GPU if there are enough; the CPU threads are divided among workers. A
    script must call this with several workers under `if __name__ == "__main__":`, since new processes import it.

    Raises:
        ConfigError: the device is a GPU and the Ray cluster has none, or a job comes after an unknown one.
        LLMDiffError: Ray is not installed or does not start, or `make` cannot be pickled.
    """
    if not jobs:
        return
    if workers.here:
        yield from _schedule(lambda: _HereSlot(make), jobs, 1)
    elif workers.ray:
        check_extra("ray", "ray")
        with cluster(workers.count) as ray:
            gpus_each = 0 if device == "cpu" else 1
            if gpus_each and not ray.cluster_resources().get("GPU"):
                raise ConfigError(f"device is {device}, but the Ray cluster has no GPU: pass --device cpu")
            yield from _schedule(lambda: ActorSlot(ray, make, gpus_each), jobs, workers.count)
    else:
        import torch

        try:
            blob = pickle.dumps(make)
        except Exception as error:  # pickling can raise any exception
            raise LLMDiffError(
                f"the work cannot be sent to other processes ({first_line(error)}): use one worker"
            ) from error
        threads = max(1, torch.get_num_threads() // workers.count)
        gpus = visible_gpus() if device == "cuda" else []
        numbers = iter(range(2**31))

        def start() -> ProcessSlot:
            number = next(numbers)
            return ProcessSlot(blob, threads, gpus[number % len(gpus)] if gpus else None)

        yield from _schedule(start, jobs, workers.count)


class _Slot(Protocol):
    """A worker that does one job at a time."""

    lost: tuple[type[Exception], ...]

    def submit(self, args: Any) -> "Future[Any]": ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


def _schedule(start: Callable[[], _Slot], jobs: Sequence[Job], count: int) -> Iterator[Done]:
    ready = deque(job for job in jobs if job.after is None)
    blocked: dict[str, list[Job]] = {}
    for job in jobs:
        if job.after is not None:
            blocked.setdefault(job.after, []).append(job)
    if unknown := set(blocked) - {job.name for job in jobs}:
        raise ConfigError(f"jobs come after {sorted(unknown)}, expected names of other jobs")
    killed: Counter[str] = Counter()
    idle: list[_Slot] = []
    running: dict[Future[Any], tuple[Job, _Slot]] = {}
    try:
        while ready or running:
            while ready and len(running) < count:
                job = ready.popleft()
                slot = idle.pop() if idle else start()
                running[slot.submit(job.args)] = job, slot
            if not ready:
                # Free their places for other jobs of a full cluster.
                while idle:
                    idle.pop().close()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, slot = running.pop(future)
                try:
                    result, error = future.result()
                except slot.lost as reason:
                    slot.close()
                    killed[job.name] += 1
                    if killed[job.name] <= _RETRIES:
                        _log.warning("%s: its worker was killed; running it again", job.name)
                        ready.appendleft(job)
                        continue
                    result, error = None, _killed(job, reason)
                except BaseException:
                    idle.append(slot)
                    raise
                else:
                    idle.append(slot)
                if error is None:
                    ready.extend(blocked.pop(job.name, ()))
                yield Done(job=job, result=result, error=error)
    finally:
        busy = [slot for _, slot in running.values()]
        for slot in busy:
            slot.stop()
        for slot in (*busy, *idle):
            slot.close()


def _killed(job: Job, reason: Exception) -> LLMDiffError:
    return LLMDiffError(
        f"{job.name}: its worker was killed {_RETRIES + 1} times ({first_line(reason)}), often for lack of memory: use "
        "fewer workers and run again; finished jobs are kept"
    )


class _HereSlot:
    """This process."""

    lost: tuple[type[Exception], ...] = ()

    def __init__(self, make: Callable[[], Work]) -> None:
        self._worker = Worker(make)

    def submit(self, args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(self._worker.run(args))
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...
