"""Files and folders are written whole, also by several processes at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmdiff.files import IDLE_S, delete_folder, whole_folder

WRITER = """
import sys, time
from pathlib import Path
from llmdiff.files import whole_folder

path, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(start - time.time(), 0))
for number in range(200):
    with whole_folder(path) as partial:
        for name in ("a", "b"):
            (partial / name).write_text(f"{sys.argv[3]} {number}")
"""


def test_several_processes_may_write_the_same_folder(tmp_path: Path) -> None:
    path, start = tmp_path / "build" / "pipeline", str(time.time() + 1.5)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, start, name], stderr=subprocess.PIPE, text=True)
        for name in ("first", "second", "third")
    ]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert errors == ["", "", ""]
    first, second = (path.joinpath(name).read_text() for name in ("a", "b"))
    assert first == second
    assert [rest.name for rest in path.parent.iterdir()] == ["pipeline"]


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with whole_folder(path) as partial:
        (partial / "weights").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(path) as partial:
        (partial / "weights").write_text(str(1 / 0))
    assert (path / "weights").read_text() == "old"
    assert [rest.name for rest in tmp_path.iterdir()] == ["model"]
    delete_folder(path)
    assert list(tmp_path.iterdir()) == []


def test_remainders_of_killed_processes_are_deleted_after_a_day(tmp_path: Path) -> None:
    killed, writing = tmp_path / ".model.0123456789ab.partial", tmp_path / ".model.ba9876543210.partial"
    for rest in (killed, writing):
        rest.mkdir()
    long_ago = time.time() - IDLE_S - 60
    os.utime(killed, (long_ago, long_ago))
    with whole_folder(tmp_path / "model"):
        pass
    assert sorted(rest.name for rest in tmp_path.iterdir()) == [writing.name, "model"]
