"""Samples in WebDataset tar shards: where each lies is found once and kept, pictures are read from the shards."""

import stat
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmdiff.environment import check_extra
from llmdiff.errors import DataError
from llmdiff.training.rows import PICTURE_SUFFIXES, shown
from llmdiff.training.sources import TableSource, innermost

_FORMAT = 1  # of the table of places
_MAX_CAPTION_BYTES = 2**20
_KINDS = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
_CAPTION = "txt"


def shards_source(pattern: str, *, cache: Path) -> TableSource:
    """Return the samples of WebDataset tar shards as img2dataset writes them: KEY.jpg and KEY.txt.

    A table of their places and captions is kept under `cache`. The fingerprint has the size and time of every shard.
    What follows a damaged place in a shard cannot be found: the shard then counts as one bad sample besides.

    Raises:
        DataError: no such shards, or one that is no tar file.
    """
    check_extra("train", "datasets")
    import datasets

    shards: list[tuple[str, int, int]] = []
    for path in sorted(glob(pattern, recursive=True)):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"shards {pattern!r} cannot be read: {path} is not a regular file")
        shards.append((shown(path), status.st_size, status.st_mtime_ns))
    if not shards:
        raise DataError(f"shards {pattern!r} cannot be read: there are no such files")
    text, number = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features(
        {
            "key": text,
            "picture": {"path": text, "offset": number, "size": number},
            "caption": text,
            "problem": text,
        }
    )
    try:
        table = datasets.Dataset.from_generator(
            _rows,
            features=features,
            cache_dir=str(cache),
            gen_kwargs={"shards": shards, "format": _FORMAT},
        )
    except Exception as error:  # the library wraps it in its own
        raise DataError(f"shards {pattern!r} cannot be read: {innermost(error)}") from error
    if not len(table):
        raise DataError(f"shards {pattern!r} cannot be read: there are no samples in them")
    digest = sha256(repr((_FORMAT, shards)).encode()).hexdigest()
    return TableSource(table, image="picture", captions=["caption"], key="key", fingerprint=digest)


def _rows(shards: Sequence[tuple[str, int, int]], format: int) -> Iterator[dict[str, Any]]:
    for path, size, _ in shards:
        # Compressed ones cannot be read from the middle.
        with tarfile.open(path, "r:", errors="backslashreplace") as tar:
            key, parts = "", dict[str, tarfile.TarInfo]()
            for member in _members(tar):
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if (found := f"{folder}/{stem}" if folder else stem) != key:
                    if parts:
                        yield _row(tar, path, key, parts)
                    key, parts = found, {}
                parts[kind.lower()] = member
            if parts:
                yield _row(tar, path, key, parts)
            if (end := _damaged_at(tar, size)) is not None:
                yield {
                    "key": path,
                    "picture": None,
                    "caption": None,
                    "problem": f"the shard is cut off or damaged at byte {end}: what follows is not used",
                }


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep millions
            if member.isreg() and not member.issparse():
                yield member
    except Exception:  # headers break in many ways; `_damaged_at` says where
        return


def _damaged_at(tar: tarfile.TarFile, size: int) -> int | None:
    """Where the shard breaks off; None where its end is marked, by a block of zeros."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    return None if len(block) == tarfile.BLOCKSIZE and not any(block) else min(tar.offset, size)


def _row(tar: tarfile.TarFile, path: str, key: str, parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    picture = next((parts[kind] for kind in _KINDS if kind in parts), None)
    place = None if picture is None else {"path": path, "offset": picture.offset_data, "size": picture.size}
    caption: str | None = None
    problem = None if place else "no picture in the shard"
    if (written := parts.get(_CAPTION)) is not None:
        file: Any = tar.fileobj
        file.seek(written.offset_data)
        try:
            caption = file.read(min(written.size, _MAX_CAPTION_BYTES)).decode("utf-8-sig")
        except UnicodeDecodeError:
            problem = problem or "caption is not UTF-8"
    return {"key": key, "picture": place, "caption": caption, "problem": problem}
