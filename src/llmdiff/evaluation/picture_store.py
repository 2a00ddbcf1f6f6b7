"""Pictures of an evaluation on disk: drawn once, by one or several processes, and resumable."""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from llmdiff.checks.bounds import short
from llmdiff.drawing.pictures import open_picture, read_metadata, save_png
from llmdiff.errors import ConfigError, CorruptWeightsError, InputFileError, LLMDiffError
from llmdiff.evaluation.systems import System
from llmdiff.files import read_json, write_whole

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
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The share of the prompts that this process draws: number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard of a text like 2/4.

        Raises:
            ConfigError: the text is not a shard.
        """
        index, _, count = text.partition("/")
        short_enough = len(text) <= 20
        if not (short_enough and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ConfigError(f"shard: got {short(text)}, expected I/N with I from 1 to N, for example 2/4")
        return cls(index=int(index), count=int(count))

    def takes(self, position: int) -> bool:
        """Return whether the prompt at this position belongs to this shard."""
        return position % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


class PictureStore:
    """The pictures of every system in an evaluation's folder: drawn/SYSTEM/NAME.png, or NAME.failed.txt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
                    f"{wanted.get(name)!r}: go on with the same settings, or choose another folder"
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

    def missing(self, system: str, jobs: Iterable[PictureJob]) -> list[PictureJob]:
        """Return the jobs that have no picture yet, including those that failed."""
        return [job for job in jobs if not self.path(system, job).exists()]

    def failed(self, system: str, jobs: Iterable[PictureJob]) -> list[PictureJob]:
        """Return the jobs whose drawing failed."""
        return [job for job in self.missing(system, jobs) if self.failure_path(system, job).exists()]

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
            raise ConfigError(f"{path} is not there: its shard has not been drawn yet")
        try:
            return np.asarray(open_picture(path))
        except InputFileError as error:
            raise CorruptWeightsError(f"{path} is damaged ({error}): delete it and run again") from error

    def seconds_per_image(self, system: str, jobs: Iterable[PictureJob]) -> float:
        """Return the mean drawing time of the system's pictures; 0 if there are none. Units: seconds."""
        paths = [path for job in jobs if (path := self.path(system, job)).exists()]
        times = [float(read_metadata(path).get("drawing_s", 0)) for path in paths]
        return float(np.mean(times)) if times else 0.0


def draw_missing(
    systems: Mapping[str, System],
    jobs: Sequence[Sequence[PictureJob]],
    store: PictureStore,
    *,
    batch: int = 16,
    shard: Shard | None = None,
) -> None:
    """Draw the missing pictures of the shard's prompts, with a progress bar; `jobs` has a list per prompt.

    A picture that also fails alone, outside its batch, is recorded as failed with the reason.

    Raises:
        LLMDiffError: a system returned something other than pictures, or its first pictures all failed.
        OutputError: a picture cannot be written.
    """
    shard = shard or Shard()
    mine = [job for position, row in enumerate(jobs) if shard.takes(position) for job in row]
    for name, system in systems.items():
        todo = store.missing(name, mine)
        failures: list[Exception] = []
        with tqdm(
            total=len(mine), initial=len(mine) - len(todo), desc=name, unit="image", mininterval=1
        ) as bar:
            for start in range(0, len(todo), batch):
                some = todo[start : start + batch]
                began = time.monotonic()
                images = try_each(name, system, [job.prompt for job in some], [job.seed for job in some])
                seconds = (time.monotonic() - began) / len(some)
                for job, image in zip(some, images, strict=True):
                    if isinstance(image, Exception):
                        failures.append(image)
                        _log.warning("system %s: %r could not be drawn: %s", name, job.prompt, image)
                        write_whole(store.failure_path(name, job), f"{type(image).__name__}: {image}\n")
                        continue
                    said = {"prompt": job.prompt, "seed": job.seed, "system": name, **job.facts}
                    save_png(
                        Image.fromarray(image), store.path(name, job), said | {"drawing_s": round(seconds, 4)}
                    )
                    store.failure_path(name, job).unlink(missing_ok=True)
                bar.update(len(some))
                tried = start + len(some)
                if len(failures) == tried >= min(_HOPELESS, len(mine)) and len(todo) == len(mine):
                    store.forget_settings()
                    first = "" if tried == len(mine) else "first "
                    raise LLMDiffError(
                        f"system {name}: none of its {first}{tried} pictures could be drawn; the first: {failures[0]}"
                    ) from failures[0]


def check_pictures(name: str, images: NDArray[np.uint8], count: int) -> None:
    """Check that these are `count` pictures.

    Raises:
        LLMDiffError: they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (count, 3):
        raise LLMDiffError(
            f"system {name}: gave {images.dtype} of shape {images.shape}, expected uint8 of shape "
            f"({count}, height, width, 3)"
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
    check_pictures(name, images, len(prompts))
    return list(images)


def with_black(pictures: Sequence[NDArray[np.uint8] | None], *, level: int = 0) -> NDArray[np.uint8]:
    """Return the pictures, with black ones of the same shape in place of missing ones, or ones of a grey level.

    Shapes: (N, H, W, 3).
    """
    none = np.zeros((_FAILED_SIDE_PX, _FAILED_SIDE_PX, 3), dtype=np.uint8)
    black = np.full_like(next((one for one in pictures if one is not None), none), level)
    return np.stack([black if one is None else one for one in pictures])
