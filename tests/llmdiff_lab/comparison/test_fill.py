"""Systems of a benchmark in processes of their own: the same figures, errors by name, SIGTERM passed on."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from llmdiff.errors import LLMDiffError
from llmdiff.workers.jobs import Workers
from llmdiff_lab.comparison.fill import Recipe, fill
from llmdiff_lab.comparison.prepare import choose_rivals
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.systems import Variant

SMALL = {"steps": 6, "prompts_per_split": 1, "drawing_steps": 1, "seeds": 2}


def recipe(built, llm_folder, out, *names, **changes):
    return Recipe(
        preset="test",
        build=built.folder,
        begin=None,
        device="cpu",
        out=out,
        choice=choose_rivals(names, variants={"mixed": Variant(rival="guided", scale=0.5)}),
        metrics=(("siglip", "openmoji"),),
        settings={"llm": llm_folder, **SMALL, **changes},
    )


def figures(plan: Benchmark, **said):
    report = plan.report(command="", **said)
    for system in report["systems"].values():
        system["cost"] = {"trained_parameters": system["cost"]["trained_parameters"]}
    return report["systems"]


def flat(values, name=""):
    """The numbers of a nested dictionary, by their path."""
    found = {}
    for key, value in values.items():
        place = f"{name}/{key}"
        if isinstance(value, dict):
            found |= flat(value, place)
        elif isinstance(value, int | float):
            found[place] = value
    return found


def test_the_figures_are_those_of_one_process(built, llm_folder, tmp_path):
    names = ("base", "mixed", "guided")
    beside = recipe(built, llm_folder, tmp_path / "beside", *names)
    plan = beside.benchmark()
    fill(beside, plan, Workers(count=2))
    alone = recipe(built, llm_folder, tmp_path / "alone", *names).benchmark()
    before = torch.get_num_threads()
    # Sums of several threads are put together in another order.
    torch.set_num_threads(max(1, before // 2))
    alone.fill()
    torch.set_num_threads(before)
    # A process that has run other tests rounds otherwise than a fresh one.
    assert flat(figures(plan, processes=2)) == pytest.approx(flat(figures(alone)), abs=1e-3)
    # The mixture is drawn where guided is trained.
    assert {path.name for path in (plan.folder / "logs").iterdir()} == {
        "base-seed-0.log",
        "guided-seed-0.log",
        "guided-seed-1.log",
    }
    assert "2 systems at a time shared the machine" in (plan.folder / "report.json").read_text()
    assert "shared the machine" not in (alone.folder / "report.json").read_text()


def test_a_system_that_fails_is_named_and_the_others_are_done(built, llm_folder, tmp_path):
    asked = recipe(built, llm_folder, tmp_path, "base-states", "last-hidden")
    plan = asked.benchmark()
    (tmp_path / "runs" / "base-states").mkdir(parents=True)
    (tmp_path / "runs" / "base-states" / "seed-0").write_text("in the way")
    with pytest.raises(
        LLMDiffError, match=r"^base-states-seed-0: failed, base-states-seed-0 with .*run again"
    ):
        fill(asked, plan, Workers(count=2))
    assert (tmp_path / "runs" / "last-hidden" / "seed-1" / "evaluation" / "report.json").exists()
    assert not (tmp_path / "runs" / "base-states" / "seed-1").exists()
    (tmp_path / "runs" / "base-states" / "seed-0").unlink()
    (tmp_path / "logs" / "last-hidden-seed-1.log").unlink()
    fill(asked, plan, Workers(count=2))
    # What is done needs no process again.
    assert not (tmp_path / "logs" / "last-hidden-seed-1.log").exists()
    assert set(figures(plan)) == {"base-states", "last-hidden"}


def test_sigterm_ends_all_and_the_next_start_goes_on(built, llm_folder, tmp_path):
    line = [sys.executable, "-m", "llmdiff_lab.cli", "benchmark", "--out", str(tmp_path), "--preset", "test"]
    line += ["--build", str(built.folder), "--llm", llm_folder, "--device", "cpu", "--seeds", "1"]
    line += ["--rivals", "base-states,last-hidden", "--prompts", "1", "--drawing-steps", "1"]
    line += ["--workers", "2", "--steps"]
    running = subprocess.Popen([*line, "100000"], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "base-states" / "seed-0" / "training" / "log.jsonl"
    ends = time.monotonic() + 120
    while not log.exists() and time.monotonic() < ends and running.poll() is None:
        time.sleep(0.2)
    assert log.exists(), running.stderr.read()
    children = _children(running.pid)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    assert len(children) >= 2
    ends = time.monotonic() + 10  # what Python itself started for them leaves a moment later
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
    assert list(log.parent.glob("checkpoints/step-*"))
    assert not (tmp_path / "report.json").exists()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
