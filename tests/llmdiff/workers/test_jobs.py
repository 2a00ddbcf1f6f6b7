"""Jobs in this process, in two processes, and on a local Ray: every job once, errors by name, killed workers."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.workers.jobs import Done, Job, Workers, run_jobs

TWO = Workers(count=2)


class Squares:
    """Squares numbers; does what the names of some jobs ask for."""

    def __init__(self, *, add: int, folder: Path) -> None:
        self.add, self.folder = add, folder

    def __call__(self, number: int) -> tuple[int, int]:
        ran = self.folder / f"ran-{number}"
        times = len(ran.read_text()) if ran.exists() else 0
        ran.write_text("x" * (times + 1))
        if number == 13:
            raise LLMDiffError("13 cannot be squared: leave it out")
        if number == 14 or (number == 15 and not times):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in (0, 1):
            # Neither goes on before both have begun: one worker alone would wait for ever.
            for _ in range(1200):
                if (self.folder / f"ran-{1 - number}").exists():
                    break
                time.sleep(0.1)
            else:
                raise LLMDiffError("the other worker never came")
        return number**2 + self.add, os.getpid()


def _run(folder: Path, numbers: list[int], workers: Workers, **after: str) -> list[Done]:
    jobs = [Job(name=f"job-{one}", args=one, after=after.get(f"job_{one}")) for one in numbers]
    return list(run_jobs(functools.partial(Squares, add=1, folder=folder), jobs, workers))


def test_two_processes_do_every_job_once(tmp_path: Path) -> None:
    done = _run(tmp_path, list(range(12)), TWO)
    assert sorted(one.job.args for one in done) == list(range(12))
    assert all(one.checked()[0] == one.job.args**2 + 1 for one in done)
    processes = {one.result[1] for one in done}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}
    assert not any(os.path.exists(f"/proc/{process}") for process in processes)


def test_one_worker_is_this_process_and_keeps_the_order(tmp_path: Path) -> None:
    done = _run(tmp_path, [5, 3, 4], Workers())
    assert [(one.job.args, one.result) for one in done] == [(n, (n**2 + 1, os.getpid())) for n in (5, 3, 4)]


@pytest.mark.parametrize("workers", [Workers(), TWO])
def test_an_error_is_the_users_and_the_others_go_on(tmp_path: Path, workers: Workers) -> None:
    done = {
        one.job.name: one for one in _run(tmp_path, [13, 3, 4, 5], workers, job_4="job-13", job_5="job-3")
    }
    assert set(done) == {"job-13", "job-3", "job-5"}  # job-4 comes after one that failed
    assert (done["job-3"].checked()[0], done["job-5"].checked()[0]) == (10, 26)
    with pytest.raises(LLMDiffError, match=r"^13 cannot be squared: leave it out$"):
        done["job-13"].checked()
    assert not (tmp_path / "ran-4").exists()


def test_a_job_waits_for_the_one_before_it(tmp_path: Path) -> None:
    names = [one.job.name for one in _run(tmp_path, [4, 5, 3], TWO, job_4="job-3", job_5="job-4")]
    assert names == ["job-3", "job-4", "job-5"]


def test_a_killed_worker_loses_nothing_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = {one.job.name: one for one in _run(tmp_path, [15, 14, 2, 3, 4], TWO)}
    assert len(done) == 5
    assert [done[f"job-{one}"].checked()[0] for one in (15, 2, 3, 4)] == [226, 5, 10, 17]
    assert (tmp_path / "ran-15").read_text() == (tmp_path / "ran-14").read_text() == "xx"
    with pytest.raises(LLMDiffError, match=r"^job-14: its worker was killed 2 times"):
        done["job-14"].checked()
    assert "job-15: its worker was killed; running it again" in caplog.text


SLEEPERS = """
import functools, os, sys, time
from pathlib import Path
from llmdiff.workers.jobs import Job, Workers, run_jobs

def sleep(folder, number):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def make(folder):
    return functools.partial(sleep, folder)

if __name__ == "__main__":
    jobs = [Job(name=str(number), args=number) for number in range(2)]
    list(run_jobs(functools.partial(make, Path(sys.argv[1])), jobs, Workers(count=2)))
"""


def test_workers_end_with_the_process_that_started_them_however_it_ends(tmp_path: Path) -> None:
    script, folder = tmp_path / "sleepers.py", tmp_path / "begun"
    script.write_text(SLEEPERS)
    folder.mkdir()
    running = subprocess.Popen([sys.executable, str(script), str(folder)])
    ends = time.monotonic() + 200
    while len(list(folder.iterdir())) < 2 and time.monotonic() < ends:
        time.sleep(0.1)
    workers = [path.name for path in folder.iterdir()]
    assert len(workers) == 2
    running.kill()
    running.wait()
    ends = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def test_a_job_after_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="come after \\['job-9'\\]"):
        _run(tmp_path, [3, 4], Workers(), job_4="job-9")


def test_no_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers is 0, expected a whole number from 1"):
        Workers(count=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_ray_every_job_is_done_once_and_a_killed_one_is_named(ray_cluster: Any, tmp_path: Path) -> None:
    from ray import cloudpickle

    # The tests are on no other machine: their classes travel as they are.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    jobs = [Job(name=f"job-{one}", args=one) for one in (*range(6), 13, 14, 15)]
    make = functools.partial(Squares, add=1, folder=tmp_path)
    done = {one.job.args: one for one in run_jobs(make, jobs, Workers(count=2, ray=True))}
    assert set(done) == {*range(6), 13, 14, 15}
    assert {one: done[one].checked()[0] for one in (*range(6), 15)} == {n: n**2 + 1 for n in (*range(6), 15)}
    with pytest.raises(LLMDiffError, match=r"^13 cannot be squared: leave it out$"):
        done[13].checked()
    with pytest.raises(LLMDiffError, match=r"^job-14: its worker was killed 2 times"):
        done[14].checked()
    assert {(tmp_path / f"ran-{number}").read_text() for number in range(6)} == {"x"}
    assert ray_cluster.is_initialized()  # one that was there before stays
    with pytest.raises(ConfigError, match="no GPU"):
        list(run_jobs(make, jobs, Workers(count=2, ray=True), device="cuda"))
