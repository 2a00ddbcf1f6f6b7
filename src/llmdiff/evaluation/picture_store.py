"""Pictures of an evaluation on disk: drawn once, by one or several processes, and resumable."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from llmdiff.drawing.pictures import open_picture, read_metadata, save_png
from llmdiff.errors import ConfigError, CorruptWeightsError, InputFileError, LLMDiffError
from llmdiff.evaluation.suites.suite import SuitePrompt
from llmdiff.evaluation.systems import System
from llmdiff.files import read_json, write_whole
from llmdiff.workers.jobs import HERE, Job, Workers, run_jobs

DRAWN_NAME, _RUN_NAME = "drawn", "run.json"
_FAILED_SIDE_PX = 64
# If a system can draw none of its first pictures, stop.
_HOPELESS = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """One picture to draw: its file name, prompt and seed, and further metadata."""

    name: str
    prompt: str
    seed: int
    metadata: Mapping[str, object] = field(default_factory=dict)


class PictureStore:
    """The pictures of every system in an evaluation's folder: drawn/SYSTEM/NAME.png, or NAME.failed.txt.

    Fields:
        prompts: every prompt of the evaluation with the jobs of its pictures.
        rows, jobs: all prompts, and the jobs of all pictures.
    """

    def __init__(self, folder: Path, prompts: Sequence[tuple[SuitePrompt, Sequence[PictureJob]]]) -> None:
        self.folder, self.prompts = folder, prompts
        self.jobs = [job for _, jobs in prompts for job in jobs]
        self.rows = [row for row, _ in prompts]

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Check that the folder's pictures were drawn with these settings, or store the settings.

        Raises:
            ConfigError: they were drawn with other settings; the message names one.
        """
        path = self.folder / DRAWN_NAME / _RUN_NAME
        wanted = json.loads(json.dumps(dict(settings)))
        if not path.exists():
            write_whole(path, json.dumps(wanted, indent=1) + "\n")
            return
        kept = read_json(path)
        for name in sorted(set(kept) | set(wanted)):
            if kept.get(name) != wanted.get(name):
                raise ConfigError(
                    f"out {self.folder} has pictures drawn with {name} {kept.get(name)!r}, expected "
                    f"{wanted.get(name)!r}: use the same settings, or another folder"
                )

    def forget_settings(self) -> None:
        """Delete the stored settings if no picture has been drawn."""
        if not any((self.folder / DRAWN_NAME).rglob("*.png")):
            (self.folder / DRAWN_NAME / _RUN_NAME).unlink(missing_ok=True)

    def path(self, system: str, job: PictureJob) -> Path:
        """Return the path of a system's picture."""
        return self.folder / DRAWN_NAME / system / f"{job.name}.png"

    def failure_path(self, system: str, job: PictureJob) -> Path:
        """Return the path of the file with the reason why there is no picture."""
        return self.path(system, job).with_suffix(".failed.txt")

    def missing(self, system: str) -> list[PictureJob]:
        """Return the jobs that have no picture yet, including those that failed."""
        return [job for job in self.jobs if not self.path(system, job).exists()]

    def failed(self, system: str) -> list[PictureJob]:
        """Return the jobs whose drawing failed."""
        return [job for job in self.missing(system) if self.failure_path(system, job).exists()]

    def read(self, system: str, job: PictureJob) -> NDArray[np.uint8] | None:
        """Return the picture of a job; None if its drawing failed. Shapes: (H, W, 3).

        Raises:
            ConfigError: the picture has not been drawn yet.
            CorruptWeightsError: its file is damaged.
        """
        path = self.path(system, job)
        if not path.exists():
            if self.failure_path(system, job).exists():
                return None
            raise ConfigError(f"{path} is not there: draw it first")
        try:
            return np.asarray(open_picture(path))
        except InputFileError as error:
            raise CorruptWeightsError(f"{path} is damaged ({error}): delete it and run again") from error

    def drawn(self, system: str, jobs: Iterable[PictureJob]) -> list[NDArray[np.uint8]]:
        """Return the pictures of jobs, without those that failed."""
        return [picture for job in jobs if (picture := self.read(system, job)) is not None]

    def seconds_per_image(self, system: str) -> float:
        """Return the mean drawing time of the system's pictures; 0 if there are none. Units: seconds."""
        paths = [path for job in self.jobs if (path := self.path(system, job)).exists()]
        times = [float(read_metadata(path).get("drawing_s", 0)) for path in paths]
        return float(np.mean(times)) if times else 0.0


class PictureDrawer:
    """Draws jobs of systems, which it makes once, and writes the pictures."""

    def __init__(self, make_systems: Callable[[], Mapping[str, System]], store: PictureStore) -> None:
        self._systems, self._store = make_systems(), store

    def __call__(self, args: tuple[str, Sequence[PictureJob]]) -> list[str]:
        """Draw these pictures of a system; return a line for each that could not be drawn, even alone."""
        name, jobs = args
        failures: list[str] = []
        began = time.monotonic()
        images = try_each(name, self._systems[name], [job.prompt for job in jobs], [job.seed for job in jobs])
        seconds = (time.monotonic() - began) / len(jobs)
        for job, image in zip(jobs, images, strict=True):
            failure = self._store.failure_path(name, job)
            if isinstance(image, Exception):
                failures.append(str(image))
                _log.warning("system %s: %r could not be drawn: %s", name, job.prompt, image)
                write_whole(failure, f"{type(image).__name__}: {image}\n")
                continue
            metadata = {"prompt": job.prompt, "seed": job.seed, "system": name, **job.metadata}
            metadata["drawing_s"] = round(seconds, 4)
            save_png(Image.fromarray(image), self._store.path(name, job), metadata)
            failure.unlink(missing_ok=True)
        return failures


def draw_missing(
    make_systems: Callable[[], Mapping[str, System]],
    names: Sequence[str],
    store: PictureStore,
    *,
    batch: int = 16,
    workers: Workers = HERE,
    device: str = "cpu",
) -> None:
    """Draw the missing pictures of the named systems, with a progress bar.

    A picture that also fails alone, outside its batch, is recorded as failed with the reason.

    Raises:
        LLMDiffError: a system returned something other than pictures, its first pictures all failed, or a worker was
            killed.
        OutputError: a picture cannot be written.
    """
    every = len(store.jobs)
    todo = {name: store.missing(name) for name in names}
    parts = [
        Job(name=f"{name}: {some[0].name} to {some[-1].name}", args=(name, some))
        for name, missing in todo.items()
        for start in range(0, len(missing), batch)
        if (some := missing[start : start + batch])
    ]
    tried, failures = Counter[str](), dict[str, list[str]]()
    total, left = every * len(names), sum(map(len, todo.values()))
    with tqdm(total=total, initial=total - left, desc="drawing", unit="image", mininterval=1) as bar:
        for done in run_jobs(partial(PictureDrawer, make_systems, store), parts, workers, device=device):
            failed, (name, some) = done.checked(), done.job.args
            bar.update(len(some))
            tried[name] += len(some)
            reasons = failures.setdefault(name, [])
            reasons += failed
            whole = len(todo[name]) == every
            if whole and len(reasons) == tried[name] >= min(_HOPELESS, every):
                store.forget_settings()
                first = "" if tried[name] == every else "first "
                raise LLMDiffError(
                    f"system {name}: none of its {first}{tried[name]} pictures could be drawn; the first: {reasons[0]}"
                )


def try_each(
    name: str, system: System, prompts: list[str], seeds: list[int]
) -> list[NDArray[np.uint8] | Exception]:
    """Return every prompt's picture, or the error of drawing it alone.

    Raises:
        LLMDiffError: the system returned something other than pictures.
    """
    try:
        images = system(prompts, seeds)
    except Exception as error:  # any error of a pipeline: record the picture as failed and continue
        if len(prompts) == 1:
            return [error]
        pairs = zip(prompts, seeds, strict=True)
        return [one for prompt, seed in pairs for one in try_each(name, system, [prompt], [seed])]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (len(prompts), 3):
        raise LLMDiffError(
            f"system {name}: gave {images.dtype} of shape {images.shape}, expected uint8 of shape "
            f"({len(prompts)}, height, width, 3)"
        )
    return list(images)


def with_black(pictures: Sequence[NDArray[np.uint8] | None], *, level: int = 0) -> NDArray[np.uint8]:
    """Return the pictures, with pictures of one grey level (0 is black) in place of missing ones.

    Shapes: (N, H, W, 3).
    """
    none = np.zeros((_FAILED_SIDE_PX, _FAILED_SIDE_PX, 3), dtype=np.uint8)
    black = np.full_like(next((one for one in pictures if one is not None), none), level)
    return np.stack([black if one is None else one for one in pictures])
