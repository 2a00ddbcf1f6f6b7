"""The log of a run: means over several steps, written as JSON lines and to trackers."""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llmdiff.errors import OutputError
from llmdiff.files import write_whole
from llmdiff.training.processes import Processes

# A figure's name => its sum and its count.
Sums = dict[str, tuple[float, int]]


class TrainingLog:
    """Means of every figure over those of `every` steps that have it; only the main process writes."""

    def __init__(self, path: Path, first_step: int, *, every: int, processes: Processes) -> None:
        self.path, self.every, self.shown = path, every, ""
        self._processes = processes
        self._sums: Sums = {}
        self._count, self._step, self._since = 0, first_step, time.monotonic()
        if processes.is_main and path.exists():
            # Remove lines that a killed run wrote after its last checkpoint.
            kept = [json.dumps(line) for line in read_log(path) if line["step"] <= first_step]
            write_whole(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of one part of a step."""
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        self._step = step + 1

    def finish_step(self, last: Mapping[str, float], *, samples: int | None) -> None:
        """End a step, and write a line after every `every` steps. `last` has figures logged by their latest value."""
        self._count += 1
        if self._count == self.every:
            self.flush(last, samples=samples)

    def flush(self, last: Mapping[str, float], *, samples: int | None) -> None:
        """Write a line for the steps since the last line."""
        if not self._count:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        line = {"step": float(self._step)} | _means(self._processes.gathered(self._sums))
        line["steps_per_s"] = self._count / seconds
        if samples is not None:
            line["samples_per_s"] = samples * self._count / seconds
        line |= last
        if self._processes.is_main:
            self.write(line)
        self.shown = f"loss {line['loss']:.4f}"
        self._sums, self._count, self._since = {}, 0, time.monotonic()

    def write(self, line: Mapping[str, float]) -> None:
        """Append a line.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({**line, "step": int(line["step"])}) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error}): free disk space, then run again to resume"
            ) from error
        figures = {name: value for name, value in line.items() if name != "step"}
        self._processes.track(figures, int(line["step"]))


def _means(all_sums: Sequence[Sums]) -> dict[str, float]:
    names = sorted({name for sums in all_sums for name in sums})
    totals = {name: [sums[name] for sums in all_sums if name in sums] for name in names}
    return {
        name: sum(total for total, _ in found) / sum(count for _, count in found)
        for name, found in totals.items()
    }


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log without an incomplete last line."""
    lines: list[dict[str, float]] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of tensors on the device, on a CPU that of the process, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
