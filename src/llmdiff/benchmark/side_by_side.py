"""Trains and evaluates systems of a benchmark side by side, each in a process of its own.

One small training leaves most of a GPU idle, and of a CPU with many cores. A process takes one system with all its
seeds, so that what the system reads of the captions is read once. OUT/logs/SYSTEM.log has what it had to say.
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

from llmdiff.benchmark.prepare import Choice, prepare_benchmark, prepare_build
from llmdiff.benchmark.run import Benchmark
from llmdiff.benchmark.settings import split_name
from llmdiff.errors import LLMDiffError, first_line
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.training.processes import stop_requests

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that another process needs to make the same benchmark.

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
        # What can be refused at once is refused before the base is made or its scenes are drawn.
        metrics = [load_metric(*one, device=self.device) for one in self.metrics] or None
        build = prepare_build(self.preset, self.build, self.begin, torch.device(self.device))
        return prepare_benchmark(build, self.out, self.choice, metrics=metrics, **self.settings)


def fill_side_by_side(recipe: Recipe, plan: Benchmark, processes: int) -> None:
    """Train and evaluate all systems of `plan`, which `recipe` made, `processes` at a time. Returns nothing.

    Shows a progress bar. SIGTERM is passed on: each process saves where it is, then SystemExit(0) is raised.

    Raises:
        LLMDiffError: a process ended with an error; the others have gone on to their end.
    """
    waiting = _together(plan)
    # What all need and the first would make is made before they start.
    plan.trainings.prepare(list(waiting))
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    running: dict[str, BaseProcess] = {}
    failed: list[str] = []
    logs = plan.folder / "logs"
    logs.mkdir(exist_ok=True)
    try:
        with (
            stop_requests() as asked_to_stop,
            tqdm(total=len(waiting), desc=f"{processes} side by side", unit="system") as bar,
        ):
            while waiting or running:
                while waiting and len(running) < processes:
                    name, systems = next(iter(waiting.items()))
                    del waiting[name]
                    running[name] = context.Process(
                        target=_fill, args=(recipe, systems, threads, logs / f"{name}.log"), daemon=True
                    )
                    running[name].start()
                time.sleep(_LOOK_EVERY_S)
                if asked_to_stop():
                    raise SystemExit(0)
                for name in [name for name, process in running.items() if not process.is_alive()]:
                    if running.pop(name).exitcode:
                        failed.append(name)
                    bar.update()
                bar.set_postfix_str(", ".join(running), refresh=False)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    if failed:
        raise LLMDiffError(_report(failed, logs))


def _together(plan: Benchmark) -> dict[str, list[str]]:
    """Systems by the training that they draw with."""
    found: dict[str, list[str]] = {}
    for name in plan.settings.rivals:
        found.setdefault(split_name(name)[0], []).append(name)
    return found


def _fill(recipe: Recipe, systems: list[str], threads: int, log: Path) -> None:
    """What a process does. Whatever is printed, also by what is not Python, goes to its log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(threads)
    try:
        recipe.benchmark().fill(systems)
    except LLMDiffError as error:
        print(f"error: {first_line(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def _report(failed: list[str], logs: Path) -> str:
    said = _last_line(logs / f"{failed[0]}.log")
    return (
        f"{', '.join(failed)}: not done, {failed[0]} says {said!r}; more in {logs}. All others are done: run again to "
        "go on"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "nothing"
