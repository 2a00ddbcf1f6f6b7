"""Measure the peak memory of a part of a run."""

import resource
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from llmdiff.training.log import peak_memory_gb

_STATM = Path("/proc/self/statm")


class PeakMemory:
    """A context that measures the peak of the device's memory, on a CPU that of the whole process.

    On a CPU under Linux the process is sampled ten times a second; on other systems the peak since its start is used.

    Fields:
        peak_gb: the peak so far. Units: 10^9 bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_gb = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.peak_gb = _resident_gb()
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.peak_gb = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            self._ended.set()
            self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.peak_gb = max(self.peak_gb, _resident_gb())


def _resident_gb() -> float:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize() / 1e9
    return peak_memory_gb(torch.device("cpu"))
