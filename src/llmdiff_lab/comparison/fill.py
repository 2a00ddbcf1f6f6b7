"""Run a benchmark with several workers; each takes one system with one seed at a time.

A small training uses only a part of a GPU, or of a CPU with many cores. Other seeds of a system wait for its first
one, which chooses the learning rate and reads the captions for all of them. The output is in
OUT/logs/SYSTEM-seed-N.log.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from llmdiff.errors import LLMDiffError, first_line
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.workers.jobs import Job, Workers, run_jobs
from llmdiff_lab.comparison.prepare import Choice, prepare_benchmark, prepare_build
from llmdiff_lab.comparison.run import Benchmark
from llmdiff_lab.comparison.systems import System


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The arguments with which another process builds the same benchmark.

    Fields:
        preset, build, begin, fluent: see `prepare_build`. metrics: names with their models; empty: `own_metrics`.
        settings: what else `prepare_benchmark` takes.
    """

    preset: str
    build: Path | None
    begin: str | None
    fluent: Path | None = None
    device: str
    out: Path
    choice: Choice
    metrics: tuple[tuple[str, str | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def benchmark(self) -> Benchmark:
        """Return the benchmark, to run or resume.

        Raises:
            ConfigError, PipelineNotFoundError, OutputError: see `prepare_build` and `prepare_benchmark`.
            MetricError: a metric is unknown, or its model cannot be loaded.
        """
        # Validate before training the base or drawing its scenes.
        metrics = [load_metric(*one, device=self.device) for one in self.metrics] or None
        build = prepare_build(
            self.preset, self.build, self.begin, torch.device(self.device), fluent=self.fluent
        )
        return prepare_benchmark(build, self.out, self.choice, metrics=metrics, **self.settings)


def fill(recipe: Recipe, plan: Benchmark, workers: Workers) -> None:
    """Train and evaluate all systems of `plan`, which `recipe` made, with a progress bar.

    On SIGTERM every worker saves its state, then SystemExit(0) is raised.

    Raises:
        LLMDiffError: a system failed, or its worker was killed twice; those that do not depend on it are done.
    """
    if not workers.here:
        jobs = _jobs(plan)
        # Build shared inputs before starting the workers. Systems that are already drawn need none.
        plan.trainings.prepare([name for job in jobs for name in job.args[1]])
        logs = plan.folder / "logs"
        logs.mkdir(exist_ok=True)
        failed: dict[str, LLMDiffError] = {}
        with _sigterm_exits(), tqdm(total=len(jobs), desc=f"{workers.count} workers", unit="part") as bar:
            for done in run_jobs(partial(SystemFiller, recipe, logs), jobs, workers, device=recipe.device):
                if done.error is not None:
                    failed[done.job.name] = done.error
                bar.update()
        if failed:
            first, error = next(iter(failed.items()))
            raise LLMDiffError(
                f"{', '.join(failed)}: failed, {first} with {str(error)!r}; see {logs}. Systems that do not depend on "
                "it are done: run again to resume"
            )
    plan.fill()  # computes further metrics on existing pictures


def _jobs(plan: Benchmark) -> list[Job]:
    """Return a job for each training and seed, with all systems that draw with it."""
    systems: dict[tuple[str, int], list[System]] = {}
    for name, seed in plan.runs():
        if not plan.is_drawn(name, seed):
            system = plan.settings.system(name)
            systems.setdefault((system.trained, seed), []).append(system)
    first: dict[str, str] = {}  # of each rival: its first training selects the learning rate for all others
    jobs = []
    for (trained, seed), alike in systems.items():
        name, rival = f"{trained}-seed-{seed}", alike[0].rival
        jobs.append(Job(name=name, args=(trained, [one.name for one in alike], seed), after=first.get(rival)))
        first.setdefault(rival, name)
    return jobs


class SystemFiller:
    """Train and evaluate systems of a benchmark, each with its own log file."""

    def __init__(self, recipe: Recipe, logs: Path) -> None:
        self._recipe, self._logs = recipe, logs
        self._benchmark: Benchmark | None = None

    def __call__(self, args: tuple[str, list[str], int]) -> None:
        """Train and evaluate these systems with this seed."""
        trained, names, seed = args
        # All output, also that of native code.
        with (self._logs / f"{trained}-seed-{seed}.log").open("a") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
        try:
            if self._benchmark is None:
                self._benchmark = self._recipe.benchmark()
            self._benchmark.fill(names, seeds=[seed])
        except LLMDiffError:
            raise
        except Exception as error:  # any error: systems that do not depend on this one continue
            traceback.print_exc()
            raise LLMDiffError(f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
