"""A run of measurements that ends in time and writes each record as soon as it is there."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Record, interleaved, record, table

from llmdiff.errors import first_line
from llmdiff.files import write_whole


class Run:
    """The records so far, written after each one; `left` says whether there is time for more."""

    def __init__(self, options: Any, about: str) -> None:
        self.device: str = options.device
        self.quick: bool = options.quick
        self.dtype = torch.float32 if self.quick else torch.bfloat16
        self.repeats: int = options.repeats
        self.backend = "eager" if self.quick else "inductor"
        self.records: list[Record] = []
        self.notes: list[str] = []
        self._about = about.split("Every record")[0].partition("\n\n")[2].strip().replace("\n", " ")
        self._out: Path | None = options.out
        self._began, self._minutes = time.monotonic(), options.minutes

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def left(self, what: str) -> bool:
        """Return whether there is enough time for a measurement; record it as left out if not."""
        if time.monotonic() - self._began < 60 * self._minutes:
            return True
        self.note(f"{what}: not reached in {self._minutes:g} minutes")
        return False

    def tried(self, what: str, act: Callable[[], None]) -> None:
        """Run a measurement if there is time; record a failure, usually lack of memory, and continue."""
        if not self.left(what):
            return
        try:
            act()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self.note(f"{what}: {first_line(error)[:200]}")
        finally:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()

    def seconds(self, acts: dict[str, Callable[[], object]], **more: Any) -> dict[str, float]:
        return interleaved(acts, repeats=self.repeats, device=self.device, **more)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._write()

    def add(self, name: str, **more: Any) -> None:
        self.records.append(record(name, device=self.device, **more))
        print(table(self.records[-1:]).splitlines()[-1], flush=True)
        self._write()

    def _write(self) -> None:
        if self._out is None:
            return
        written = {"minutes": self._minutes, "records": self.records, "notes": self.notes}
        write_whole(self._out, json.dumps(written, indent=1) + "\n")
        where = self.records[0]["machine"] if self.records else ""
        notes = "".join(f"- {note}\n" for note in self.notes)
        page = f"# Speed at true sizes\n\n{self._about}\n\n`python speed/true_shapes.py --device cuda`, {where}\n\n"
        write_whole(self._out.with_suffix(".md"), f"{page}{table(self.records)}\n\n{notes}".rstrip() + "\n")
