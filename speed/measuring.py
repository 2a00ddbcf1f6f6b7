"""What the benchmarks of speed share: timing that is fair to both sides, the record of a claim, the table."""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
PROMPTS = (
    "a photo of a small cat to the left of a large red heart on a white background",
    "two green apples above a blue bicycle in the snow, seen from far away at night",
    "an oil painting of a harbour at sunset with three small boats and a lighthouse",
    "the fruit that keeps the doctor away, lying on a wooden table beside a cup of tea",
    "a big yellow circle on a grey background, and a purple triangle to the right of it",
    "three dogs and a penguin who wait in front of a house by the sea on a sunny day",
    "an old automobile under a tree, drawn with a pencil, with a bird on its roof",
    "a slice of pizza with mushrooms below a black umbrella and a star, plain background",
)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a figure of a record (`of`: ratio or ours) should be: at most, or at least, `value`."""

    of: str = "ratio"
    at_most: bool = True
    value: float

    def __str__(self) -> str:
        what = "" if self.of == "ratio" else f"{self.of} "
        return f"{what}{'<=' if self.at_most else '>='} {self.value:g}"

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Return whether the record's figure reaches its aim."""
        found = record[self.of]
        return bool(found <= self.value if self.at_most else found >= self.value)


def parser(what: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=what.splitlines()[0])
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--repeats", type=int, default=7, help="timed runs of each side; the median counts")
    made.add_argument("--quick", action="store_true", help="tiny models, one repeat: shows that it runs")
    made.add_argument("--out", type=Path, help="a JSON file for the records")
    return made


def dtypes(device: str) -> list[torch.dtype]:
    """Return the dtypes to measure on a device: float32, on a GPU bfloat16 too."""
    return [torch.float32] if torch.device(device).type == "cpu" else [torch.float32, torch.bfloat16]


def interleaved(
    acts: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    device: str = "cpu",
    warm_up: int = 1,
    within: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each act by the clock; `time.process_time` leaves out other work on the machine.

    All warm up first. Then they take turns, so that what slows the machine down for a while slows down all. The
    garbage collector waits; a GPU is waited for. `within` opens a context around an act, outside of its time.
    """
    around = within or {}
    for _ in range(warm_up):
        for name, act in acts.items():
            with around.get(name, nullcontext)():
                act()
    found: dict[str, list[float]] = {name: [] for name in acts}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, act in acts.items():
                with around.get(name, nullcontext)():
                    wait(device)
                    began = clock()
                    act()
                    wait(device)
                    found[name].append(clock() - began)
    finally:
        gc.enable()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def record(
    name: str,
    *,
    ours: float,
    other: float | None,
    unit: str,
    device: str = "cpu",
    ratio: float | None = None,
    aim: Aim | None = None,
    **more: Any,
) -> Record:
    """Return the record of a claim. The ratio is ours / other unless it is given; None where there is no other."""
    if ratio is None and other is not None:
        ratio = ours / other
    made: Record = {"name": name, "ratio": ratio, "ours": ours, "other": other, "unit": unit}
    if aim is not None:
        made |= {"aim": str(aim), "holds": aim.holds(made)}
    return made | more | {"machine": machine(device), "versions": versions()}


def machine(device: str = "cpu") -> str:
    """Return the processor, its cores and the threads in use; the GPU where one is used."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    text = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch"
    if torch.device(device).type == "cuda":
        text += f"; {torch.cuda.get_device_name(device)}"
    return text


def versions() -> dict[str, str]:
    """Return the versions that speed depends on."""
    found = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    return {"python": platform.python_version(), **found}


def ceilings(device: str, dtype: torch.dtype, *, quick: bool = False) -> dict[str, float]:
    """Return the machine's peak rates: FLOP/s of a large matrix product, bytes/s of a large copy."""
    on_cpu = torch.device(device).type == "cpu"
    side, numbers = (256, 2**20) if quick else (2048, 2**26) if on_cpu else (8192, 2**29)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(numbers, dtype=dtype, device=device)
    target = torch.empty_like(source)
    seconds = interleaved(
        {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, repeats=5, device=device, warm_up=2
    )
    return {
        "flops_per_s": 2 * side**3 / seconds["product"],
        "bytes_per_s": 2 * numbers * source.element_size() / seconds["copy"],
    }


def resident_mib(field: str) -> float:
    """Return VmRSS (now) or VmHWM (the highest so far) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"error: /proc/self/status has no {field}; this benchmark needs Linux")


def command_seconds(command: Sequence[str], **more: Any) -> float:
    """Return the duration of a command in seconds; raise an error if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return seconds


def table(records: Sequence[Record]) -> str:
    """Return the records as a table in Markdown."""
    from llmdiff.evaluation.tables import markdown_table

    rows = [["what", "ours", "other", "unit", "ratio", "aim", "holds"]]
    for one in records:
        holds = {True: "yes", False: "**no**", None: ""}[one.get("holds")]
        ours, other, ratio = (_number(one[key]) for key in ("ours", "other", "ratio"))
        rows.append([one["name"], ours, other, one["unit"], ratio, one.get("aim", ""), holds])
    return markdown_table(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def finish(records: list[Record], options: argparse.Namespace) -> list[Record]:
    """Print the table, write the JSON file, and return the records."""
    print(table(records))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        written = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "records": records}
        options.out.write_text(json.dumps(written, indent=1) + "\n")
    return records
