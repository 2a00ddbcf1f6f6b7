"""Work on a local Ray of two workers: every item once, errors in one line, what is done is kept."""

import os
import time
from pathlib import Path

import pytest

from llmdiff.drawing.ray_workers import on_workers
from llmdiff.errors import ConfigError, LLMDiffError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _squares():
    # Defined in here, a class travels to other processes as it is.
    class Squares:
        def __init__(self, *, add, folder=None):
            self.add = add
            if folder is None:
                return
            # No one begins before both are there: the first would do it all.
            (Path(folder) / str(os.getpid())).touch()
            for _ in range(1200):
                if len(list(Path(folder).iterdir())) == 2:
                    return
                time.sleep(0.5)
            raise LLMDiffError("the other worker never came")

        def __call__(self, item):
            if item["number"] == 13:
                raise LLMDiffError("13 cannot be squared: leave it out")
            if item["number"] == 14:
                os._exit(1)
            return {
                "number": item["number"],
                "square": item["number"] ** 2 + self.add,
                "process": os.getpid(),
            }

    return Squares


def test_every_item_is_worked_on_once_by_two_processes(ray_cluster, tmp_path):
    items = [{"number": number} for number in range(12)]
    init_args = {"add": 1, "folder": str(tmp_path)}
    found = list(on_workers(_squares(), init_args, items, workers=2))
    assert {one["number"]: one["square"] for one in found} == {number: number**2 + 1 for number in range(12)}
    assert len(found) == 12
    processes = {one["process"] for one in found}
    assert os.getpid() not in processes
    assert {str(process) for process in processes} <= {path.name for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2
    assert ray_cluster.is_initialized()  # one that was there before stays


def test_an_error_of_a_worker_is_the_users_error(ray_cluster):
    with pytest.raises(LLMDiffError, match=r"^13 cannot be squared: leave it out$"):
        list(on_workers(_squares(), {"add": 0}, [{"number": 13}], workers=1))


def test_a_worker_that_dies_is_said(ray_cluster):
    with pytest.raises(LLMDiffError, match="a Ray worker failed"):
        list(on_workers(_squares(), {"add": 0}, [{"number": 14}], workers=1))


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(ConfigError, match="workers is 0, expected at least 1"):
        list(on_workers(_squares(), {"add": 0}, [{"number": 1}], workers=0))
