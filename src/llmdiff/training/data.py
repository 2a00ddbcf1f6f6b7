"""Training samples, checked once and sorted into buckets of equal shape.

Bad samples are listed in a quarantine file with their reasons; they are never replaced.
"""

import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.adapter.manifest import check_manifest, write_manifest
from llmdiff.errors import CorruptWeightsError, DataError, InputFileError, LLMDiffError, first_line
from llmdiff.files import is_blank, not_writable, whole_folder
from llmdiff.training.denoise import Sizes
from llmdiff.training.rows import Row, Source, is_whole_text, shown
from llmdiff.training.shapes import Shapes, cut, resized_size

# Captions with these words are wrong for mirrored pictures.
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_SEEN_BEFORE_STOPPING = 1000
_FORMAT = 2  # version of the stored checks and of how pictures are opened
_Good = tuple[tuple[int, int, int, int], bytes]  # a row of `Samples.rows`, and its digests
_GOOD, _QUARANTINE = "good.safetensors", "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The good samples of a source; `place` is the folder with the results of the check.

    Shapes:
        rows: (N, 4) int64: index in the source, width, height, bucket.
        digests: (N, 2, 32) uint8, SHA-256 of the picture's file and of the captions.
    """

    source: Source
    shapes: Shapes
    rows: Tensor
    digests: Tensor
    quarantined: int
    place: Path

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of all pictures and captions; paths and times do not matter."""
        return sha256(self.digests.numpy().tobytes()).hexdigest()

    def batches(self, indices: Iterable[int], size: int) -> Iterator[list[int]]:
        """Yield these samples in batches of at most `size`, each of one bucket."""
        alike: dict[int, list[int]] = defaultdict(list)
        for index in indices:
            alike[int(self.rows[index, 3])].append(index)
        for found in alike.values():
            for start in range(0, len(found), size):
                yield found[start : start + size]

    def picture_name(self, index: int) -> str:
        """Return a unique name of a picture: a digest of its content."""
        return self.digests[index, 0].numpy().tobytes().hex()[:32]

    def texts(self, index: int) -> list[tuple[str, str]]:
        """Return all captions of a sample, each with its plain wording, which may be the same."""
        row = self.source.row(int(self.rows[index, 0]))
        return list(zip(row.texts, row.plain_texts, strict=True))

    def text(self, index: int, rng: np.random.Generator) -> str:
        """Return one of a sample's captions."""
        return _one_of(self.source.row(int(self.rows[index, 0])).texts, rng)

    def sizes(self, index: int) -> Sizes:
        """Return the sizes of a sample with a centre crop."""
        _, width, height, bucket = self.rows[index].tolist()
        target = self.shapes.buckets()[bucket]
        resized = resized_size(width, height, *target)
        corner = (resized[1] - target[0]) // 2, (resized[0] - target[1]) // 2
        return Sizes(original=(height, width), crop=corner, target=target)

    def load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, str, Sizes]:
        """Return a picture, cropped to its bucket, with one of its captions and its sizes.

        Shapes: (3, H, W) float32 in -1..1.

        Raises:
            DataError: the picture has changed since it was checked; the next start checks again.
        """
        number, _, _, bucket = self.rows[index].tolist()
        row = self.source.row(number)
        text = _one_of(row.texts, rng)
        try:
            content = row.content()
            if sha256(content).digest() != self.digests[index, 0].numpy().tobytes():
                raise InputFileError("it is another picture")
            picture = row.decode(content)
        except (OSError, ValueError) as error:
            # Delete the results of the check, so that the next start checks again.
            shutil.rmtree(self.place, ignore_errors=True)
            raise DataError(
                f"{row.key} has changed since it was checked ({first_line(error)}): prepare again"
            ) from error
        height, width = self.shapes.buckets()[bucket]
        part, corner = cut(picture, height, width, self.shapes.crop, rng)
        pixels = np.asarray(part, dtype=np.float32) / 127.5 - 1
        mirrored = self.shapes.flip and rng.random() < 0.5 and not _SIDES.search(text)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels))
        sizes = Sizes(original=(picture.height, picture.width), crop=corner, target=(height, width))
        return tensor.permute(2, 0, 1).contiguous(), text, sizes


def check_samples(
    source: Source, shapes: Shapes, folder: Path, *, max_bad_share: float = 0.05, threads: int = 4
) -> Samples:
    """Return the good samples of a source; store the results in `folder`, so that each picture is checked once.

    FOLDER/KEY/quarantine.jsonl lists the others, each with its reason.

    Raises:
        DataError: more than `max_bad_share` of the samples are bad, or none is good.
        OutputError: the folder cannot be written.
    """
    settings = json.dumps([_FORMAT, source.fingerprint, shapes.__dict__], sort_keys=True)
    place = folder / sha256(settings.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # another run with this store waits and then uses the results
            if not _is_intact(place):
                good, bad = _checked(source, shapes, max_bad_share, threads)
                _keep(place, good, bad)
    except LLMDiffError:
        raise
    except OSError as error:
        raise not_writable(folder, error) from error
    found = load_file(place / _GOOD)
    quarantined = len((place / _QUARANTINE).read_text().splitlines())
    _stop_if_too_many(quarantined, len(found["rows"]) + quarantined, max_bad_share, Counter(), place)
    if not len(found["rows"]):
        raise DataError(f"no sample is good; {place / _QUARANTINE} says why")
    return Samples(source=source, shapes=shapes, quarantined=quarantined, place=place, **found)


def _keep(place: Path, good: list[_Good], bad: list[dict[str, str]]) -> None:
    with whole_folder(place) as partial:
        rows = torch.tensor([row for row, _ in good], dtype=torch.int64).reshape(-1, 4)
        digests = np.frombuffer(b"".join(digests for _, digests in good), np.uint8).reshape(-1, 2, 32)
        save_file({"rows": rows, "digests": torch.from_numpy(digests.copy())}, partial / _GOOD)
        (partial / _QUARANTINE).write_text("".join(f"{json.dumps(line)}\n" for line in bad))
        write_manifest(partial, [_GOOD, _QUARANTINE])


def _is_intact(place: Path) -> bool:
    try:
        check_manifest(place, [_GOOD, _QUARANTINE])
    except CorruptWeightsError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of checking a sample: the reason if it is bad, its picture's size in pixels, and its digests."""

    reason: str | None
    width: int = 0
    height: int = 0
    digests: bytes = b""


def check(row: Row, shapes: Shapes) -> Checked:
    """Read a sample's captions and picture and return the result of the check."""
    reason = row.problem or _why_bad_texts(row)
    if reason is not None:
        return Checked(reason=reason)
    # No exception of a single sample may stop the run.
    try:
        content = row.content()
    except Exception as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        return Checked(reason="picture is missing" if missing else shown(first_line(error)))
    try:
        width, height = row.size_px or row.decode(content).size
    except Exception as error:
        return Checked(reason=_why_no_picture(error))
    if min(width, height) < shapes.min_side_px:
        return Checked(reason="picture is too small")
    if max(width, height) > 2 * shapes.max_aspect * min(width, height):
        return Checked(reason="picture is too long")
    texts = json.dumps([*row.texts, *row.plain_captions]).encode()
    return Checked(
        reason=None,
        width=width,
        height=height,
        digests=sha256(content).digest() + sha256(texts).digest(),
    )


def _why_bad_texts(row: Row) -> str | None:
    if not row.captions:
        return "no caption"
    if not row.texts or not all(isinstance(text, str) for text in row.texts):
        return "caption is not a text"
    if any(map(is_blank, row.texts)):
        return "empty caption"
    if not all(map(is_whole_text, row.texts)):
        return "caption has half a character (a lone surrogate)"
    if len(row.plain_texts) != len(row.texts):
        return f"{len(row.plain_texts)} plain captions for {len(row.texts)} captions"
    if not all(
        isinstance(text, str) and not is_blank(text) and is_whole_text(text) for text in row.plain_texts
    ):
        return "plain caption is empty or not a text"
    return None


def _why_no_picture(error: Exception) -> str:
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "not a picture"
    # Without a cause, the error is ours (too many pixels); with one, a decoder's.
    return "picture is damaged" if error.__cause__ is not None else first_line(error)


def _checked(
    source: Source, shapes: Shapes, max_bad_share: float, threads: int
) -> tuple[list[_Good], list[dict[str, str]]]:
    aspects = np.log([width / height for height, width in shapes.buckets()])
    good: list[_Good] = []
    bad: list[dict[str, str]] = []
    reasons: Counter[str] = Counter()

    def look(number: int) -> tuple[int, str, Checked]:
        row = source.row(number)
        return number, row.key, check(row, shapes)

    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(source), desc="checking", mininterval=2) as bar:
        for number, key, found in pool.map(look, range(len(source)), chunksize=16):
            if found.reason is None:
                bucket = int(np.abs(aspects - np.log(found.width / found.height)).argmin())
                good.append(((number, found.width, found.height, bucket), found.digests))
            else:
                bad.append({"key": key, "reason": found.reason})
                reasons[found.reason] += 1
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
        f"{bad} of {seen} samples are bad, more than max_bad_share {max_bad_share:g} allows ({where}): correct the "
        "data, or allow more"
    )


def _one_of(texts: list[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
