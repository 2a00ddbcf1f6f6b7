"""Training samples: checked once, in buckets of like shape, each used exactly once in every epoch.

What is wrong goes to a quarantine list with its reason and is never replaced by something else.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.errors import DataError
from llmdiff.files import whole_folder
from llmdiff.training.denoise import Sizes
from llmdiff.training.sources import Row, Source

# Words whose meaning a mirror turns round.
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_SEEN_BEFORE_STOPPING = 1000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Which pictures are taken and what becomes of them.

    Units: pixels. `resolution_px` squared is the area of every bucket, sides are multiples of `multiple_px`.
    """

    resolution_px: int
    multiple_px: int = 64
    aspect_buckets: bool = True
    max_aspect: float = 2.0
    min_side_px: int = 32
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False

    def buckets(self) -> list[tuple[int, int]]:
        """Return the (height, width) of every bucket, from upright to wide."""
        step = self.multiple_px
        square = max(step, self.resolution_px // step * step)
        if not self.aspect_buckets:
            return [(square, square)]
        found = {(square, square)}
        for long in range(square, int(square * self.max_aspect**0.5) + step, step):
            short = max(step, round(square * square / long / step) * step)
            if long / short <= self.max_aspect:
                found |= {(long, short), (short, long)}
        return sorted(found, key=lambda size: size[1] / size[0])


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The good samples of a source.

    Shapes: rows (N, 4) int64: number in the source, width, height, bucket.
    """

    source: Source
    shapes: Shapes
    rows: Tensor
    quarantined: int

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, str, Sizes]:
        """Return a picture, cut to its bucket, with one of its captions.

        Shapes: (3, H, W) float32 in -1..1.

        Raises:
            DataError: the picture was good when it was checked, and no longer is.
        """
        number, _, _, bucket = self.rows[index].tolist()
        row = self.source.row(number)
        captions = list(row.captions)
        text = captions[int(rng.integers(len(captions)))]
        try:
            picture = row.open().convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"{row.key} was readable before and is not now ({error}): prepare again"
            ) from error
        height, width = self.shapes.buckets()[bucket]
        cut, corner = _cut(picture, height, width, self.shapes.crop, rng)
        pixels = np.asarray(cut, dtype=np.float32) / 127.5 - 1
        mirrored = self.shapes.flip and rng.random() < 0.5 and not _SIDES.search(text)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels))
        sizes = Sizes(original=(picture.height, picture.width), crop=corner, target=(height, width))
        return tensor.permute(2, 0, 1).contiguous(), text, sizes


def check_samples(
    source: Source, shapes: Shapes, folder: Path, *, max_bad_share: float = 0.05, threads: int = 4
) -> Samples:
    """Return the good samples of a source; `folder` keeps them, so that each picture is checked once.

    FOLDER/KEY/quarantine.jsonl lists the others, each with its reason.

    Raises:
        DataError: more than `max_bad_share` of the samples are bad, or none is good.
    """
    settings = json.dumps([source.fingerprint, shapes.__dict__], sort_keys=True)
    place = folder / sha256(settings.encode()).hexdigest()[:16]
    if not place.is_dir():
        good, bad = _checked(source, shapes, max_bad_share, threads)
        with whole_folder(place) as partial:
            save_file(
                {"rows": torch.tensor(good, dtype=torch.int64).reshape(-1, 4)}, partial / "good.safetensors"
            )
            (partial / "quarantine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in bad))
    rows = load_file(place / "good.safetensors")["rows"]
    quarantined = len((place / "quarantine.jsonl").read_text().splitlines())
    _stop_if_too_many(quarantined, len(rows) + quarantined, max_bad_share, Counter(), place)
    if not len(rows):
        raise DataError(f"no sample is good; {place / 'quarantine.jsonl'} says why")
    return Samples(source=source, shapes=shapes, rows=rows, quarantined=quarantined)


def why_bad(row: Row, shapes: Shapes) -> tuple[str | None, tuple[int, int]]:
    """Return what is wrong with a sample, or None, and the picture's width and height in pixels."""
    if row.problem:
        return row.problem, (0, 0)
    if not row.captions:
        return "no caption", (0, 0)
    if not all(isinstance(text, str) for text in row.captions):
        return "caption is not a text", (0, 0)
    if not all(text.strip() for text in row.captions):
        return "empty caption", (0, 0)
    try:
        picture = row.open()
        picture.convert("RGB")  # reads all of it
    except FileNotFoundError:
        return "picture is missing", (0, 0)
    except UnidentifiedImageError:
        return "not a picture", (0, 0)
    except Image.DecompressionBombError:
        return "picture has too many pixels", (0, 0)
    except (OSError, ValueError, SyntaxError):
        return "picture is damaged", (0, 0)
    if min(picture.size) < shapes.min_side_px:
        return "picture is too small", picture.size
    if max(picture.size) > 2 * shapes.max_aspect * min(picture.size):
        return "picture is too long", picture.size
    return None, picture.size


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Batches of samples of one bucket each, in an order that depends on seed and epoch only.

    Every epoch has every sample exactly once, so the last batch of a bucket may be a smaller one.
    """

    rows: Tensor
    batch_size: int
    seed: int
    _members: list[np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        buckets = self.rows[:, 3].numpy()
        members = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        object.__setattr__(self, "_members", members)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in every epoch."""
        return sum(-(-len(members) // self.batch_size) for members in self._members)

    def batch(self, number: int) -> list[int]:
        """Return the samples of a batch, counted from the first of epoch 0."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _epoch(self, epoch: int) -> list[list[int]]:
        kept: tuple[int, list[list[int]]] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([self.seed, 13, epoch])
            shuffled = [rng.permutation(members) for members in self._members]
            batches = [
                part[start : start + self.batch_size].tolist()
                for part in shuffled
                for start in range(0, len(part), self.batch_size)
            ]
            kept = epoch, [batches[place] for place in rng.permutation(len(batches))]
            object.__setattr__(self, "_kept", kept)
        return kept[1]


class Prefetcher(Generic[T]):
    """Values by number, made in threads before they are asked for, when they are asked for in steps of `stride`.

    `ahead` values are under way at any time; with 0, each is made when it is asked for. None is begun from the
    number `end` on.
    """

    def __init__(
        self, make: Callable[[int], T], *, stride: int, ahead: int = 2, end: int | None = None
    ) -> None:
        self._make, self._stride, self._ahead, self._end = make, stride, ahead, end
        self._pool = ThreadPoolExecutor(max(1, ahead), thread_name_prefix="prefetch")
        self._waiting: dict[int, Future[T]] = {}

    def get(self, number: int) -> T:
        """Return the value; those that come after it are begun.

        Raises:
            Exception: whatever making it raised, in its thread.
        """
        if self._ahead == 0:
            return self._make(number)
        later = [number + step * self._stride for step in range(1, self._ahead + 1)]
        wanted = [number, *(one for one in later if self._end is None or one < self._end)]
        self._waiting = {one: self._waiting.get(one) or self._pool.submit(self._make, one) for one in wanted}
        return self._waiting.pop(number).result()

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way; returns nothing."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting = {}


def _checked(
    source: Source, shapes: Shapes, max_bad_share: float, threads: int
) -> tuple[list[tuple[int, int, int, int]], list[dict[str, str]]]:
    aspects = np.log([width / height for height, width in shapes.buckets()])
    good: list[tuple[int, int, int, int]] = []
    bad: list[dict[str, str]] = []
    reasons: Counter[str] = Counter()

    def check(number: int) -> tuple[int, str, str | None, tuple[int, int]]:
        row = source.row(number)
        reason, size = why_bad(row, shapes)
        return number, row.key, reason, size

    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(source), desc="checking", mininterval=2) as bar:
        for number, key, reason, (width, height) in pool.map(check, range(len(source)), chunksize=16):
            if reason is None:
                bucket = int(np.abs(aspects - np.log(width / height)).argmin())
                good.append((number, width, height, bucket))
            else:
                bad.append({"key": key, "reason": reason})
                reasons[reason] += 1
                bar.set_postfix_str(f"{len(bad)} in quarantine", refresh=False)
                seen = len(good) + len(bad)
                if seen >= _SEEN_BEFORE_STOPPING:
                    _stop_if_too_many(len(bad), seen, max_bad_share, reasons, None)
            bar.update()
    return good, bad


def _stop_if_too_many(
    bad: int, seen: int, max_bad_share: float, reasons: Counter[str], place: Path | None
) -> None:
    if bad <= max_bad_share * seen:
        return
    said = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    where = said or f"{place / 'quarantine.jsonl' if place else ''} says why"
    raise DataError(
        f"{bad} of {seen} samples are bad, more than max_bad_share {max_bad_share:g} allows ({where}): mend the data, "
        "or allow more"
    )


def _cut(
    picture: Image.Image, height: int, width: int, crop: str, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int]]:
    """The part of a picture that fills height x width, and its corner (top, left) in the resized picture."""
    scale = max(height / picture.height, width / picture.width)
    resized = picture.resize(
        (max(width, round(picture.width * scale)), max(height, round(picture.height * scale))),
        Image.Resampling.LANCZOS,
    )
    spare = resized.height - height, resized.width - width
    if crop == "random":
        top, left = (int(rng.integers(room + 1)) for room in spare)
    else:
        top, left = (room // 2 for room in spare)
    return resized.crop((left, top, left + width, top + height)), (top, left)
