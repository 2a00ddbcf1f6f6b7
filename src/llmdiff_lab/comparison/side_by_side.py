"""Trains and evaluates systems of a benchmark side by side, each in a process of its own.

One small training leaves most of a GPU idle, and of a CPU with many cores. A process takes one system with one seed.
Other seeds of a system wait for its first, which chooses the learning rate and reads the captions for all of them.
OUT/logs/SYSTEM-seed-N.log has what a process had to say.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from llmdiff.errors import LLMDiffError, first_line
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.training.processes import stop_requests
from llmdiff_lab.comparison.names import SystemName
from llmdiff_lab.comparison.prepare import Choice, prepare_benchmark, prepare_build
from llmdiff_lab.comparison.run import Benchmark

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The arguments with which another process builds the same benchmark.

    Fields:
        preset, build, begin: see `prepare_build`. metrics: names with their models; empty: `own_metrics`.
        settings: what else `prepare_benchmark` takes.
    """

    preset: str
    build: Path | None
    begin: str | None
    device: str
    out: Path
    choice: Choice
    metrics: tuple[tuple[str, str | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def benchmark(self) -> Benchmark:
        """Return the benchmark, ready to run or to go on.

        Raises:
            ConfigError, PipelineNotFoundError, OutputError: see `prepare_build` and `prepare_benchmark`.
            MetricError: a metric is unknown, or its model cannot be loaded.
        """
        # Validate before training the base or drawing its scenes.
        metrics = [load_metric(*one, device=self.device) for one in self.metrics] or None
        build = prepare_build(self.preset, self.build, self.begin, torch.device(self.device))
        return prepare_benchmark(build, self.out, self.choice, metrics=metrics, **self.settings)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The work of one process: a training, and all systems that draw with it, for one seed."""

    trained: str
    systems: tuple[str, ...]
    seed: int

    @property
    def rival(self) -> str:
        """Return the rival whose first training selects the learning rate for all others."""
        return SystemName.of(self.trained).rival

    @property
    def name(self) -> str:
        return f"{self.trained}-seed-{self.seed}"


def fill_side_by_side(recipe: Recipe, plan: Benchmark, processes: int) -> None:
    """Train and evaluate all systems of `plan`, which `recipe` made, `processes` at a time.

    Shows a progress bar. SIGTERM is passed on: each process saves where it is, then SystemExit(0) is raised.

    Raises:
        LLMDiffError: a process ended with an error; those that do not depend on it have gone on to their end.
    """
    waiting = _tasks(plan)
    # Build shared inputs before starting the processes. Systems that are already drawn need no process.
    plan.trainings.prepare(list(dict.fromkeys(task.trained for task in waiting)))
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    running: dict[_Task, BaseProcess] = {}
    first = {task.rival: task for task in reversed(waiting)}
    ready: set[str] = set()
    failed: list[_Task] = []
    logs = plan.folder / "logs"
    logs.mkdir(exist_ok=True)
    try:
        with (
            stop_requests() as asked_to_stop,
            tqdm(
                total=len(waiting), desc=f"{processes} side by side", unit="part", disable=not waiting
            ) as bar,
        ):
            while waiting or running:
                able = [task for task in waiting if task.rival in ready or task is first[task.rival]]
                for task in able[: processes - len(running)]:
                    waiting.remove(task)
                    running[task] = context.Process(
                        target=_fill, args=(recipe, task, threads, logs / f"{task.name}.log"), daemon=True
                    )
                    running[task].start()
                time.sleep(_LOOK_EVERY_S)
                if asked_to_stop():
                    raise SystemExit(0)
                for task in [task for task, process in running.items() if not process.is_alive()]:
                    if running.pop(task).exitcode:
                        failed.append(task)
                        waiting = [one for one in waiting if one.rival != task.rival]
                    ready.add(task.rival)
                    bar.update()
                bar.set_postfix_str(", ".join(task.name for task in running), refresh=False)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    if failed:
        raise LLMDiffError(_report([task.name for task in failed], logs))
    plan.fill()  # measures what was drawn before with other metrics


def _tasks(plan: Benchmark) -> list[_Task]:
    systems: dict[tuple[str, int], list[str]] = {}
    for name, seed in plan.runs():
        if not plan.is_drawn(name, seed):
            systems.setdefault((SystemName.of(name).trained, seed), []).append(name)
    return [
        _Task(trained=trained, systems=tuple(names), seed=seed) for (trained, seed), names in systems.items()
    ]


def _fill(recipe: Recipe, task: _Task, threads: int, log: Path) -> None:
    """Run one task in a process, with all output, also that of native code, in its log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(threads)
    try:
        recipe.benchmark().fill(task.systems, seeds=[task.seed])
    except LLMDiffError as error:
        print(f"error: {first_line(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def _report(failed: list[str], logs: Path) -> str:
    said = _last_line(logs / f"{failed[0]}.log")
    return (
        f"{', '.join(failed)}: not done, {failed[0]} says {said!r}; more in {logs}. What does not depend on it is "
        "done: run again to go on"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "nothing"
