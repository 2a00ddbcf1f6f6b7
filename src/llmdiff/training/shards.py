"""Samples in WebDataset tar shards: a table stores the offset of each picture, which is read from its shard."""

import json
import stat
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmdiff.environment import check_extra
from llmdiff.errors import DataError
from llmdiff.training.folders import texts_of
from llmdiff.training.rows import PICTURE_SUFFIXES, shown
from llmdiff.training.sources import TableSource, innermost

_FORMAT = 2  # version of the table of offsets
_MAX_CAPTION_BYTES = 2**20
_MAX_SHARDS = 100_000
_KINDS = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
_TEXTS = ("txt", "caption")


def shards_source(pattern: str, *, cache: Path) -> TableSource:
    """Return the samples of WebDataset tar shards as img2dataset writes them: KEY.jpg and KEY.txt.

    The caption is in KEY.txt or KEY.caption, else in KEY.json under `text`, `caption` or `captions`. `pattern` may
    contain wildcards and brace ranges: `data/{00000..00099}.tar`. A table of offsets and captions is kept under
    `cache`. The fingerprint covers the size and modification time of every shard. The rest of a shard after damaged
    bytes is not read and counts as one bad sample.

    Raises:
        DataError: there are no such shards, one of a brace range is missing, or one is not a tar file.
    """
    check_extra("train", "datasets", "bracex")
    import datasets

    shards: list[tuple[str, int, int]] = []
    for path in _paths(pattern):
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
            "captions": datasets.List(text),
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
    except Exception as error:  # `datasets` wraps errors in its own classes
        raise DataError(f"shards {pattern!r} cannot be read: {innermost(error)}") from error
    if not len(table):
        raise DataError(f"shards {pattern!r} cannot be read: there are no samples in them")
    digest = sha256(repr((_FORMAT, shards)).encode()).hexdigest()
    return TableSource(table, image="picture", captions=["captions"], key="key", fingerprint=digest)


def _paths(pattern: str) -> list[str]:
    import bracex

    try:
        patterns = bracex.expand(pattern, limit=_MAX_SHARDS)
    except bracex.ExpansionLimitException as error:
        raise DataError(f"shards {pattern!r} are more than {_MAX_SHARDS:,} files: use fewer") from error
    found: set[str] = set()
    for one in patterns:
        paths = glob(one, recursive=True)
        if not paths and len(patterns) > 1:
            raise DataError(f"shards {pattern!r} cannot be read: {one} is missing")
        found.update(paths)
    return sorted(found)


def _rows(shards: Sequence[tuple[str, int, int]], format: int) -> Iterator[dict[str, Any]]:
    for path, size, _ in shards:
        # "r:" rejects compressed shards, which do not allow random access.
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
                    "captions": [],
                    "problem": f"the shard is truncated or damaged at byte {end}: the rest is not used",
                }


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # the list would grow to millions
            if member.isreg() and not member.issparse():
                yield member
    except Exception:  # damaged headers raise many kinds of exceptions; `_damaged_at` finds the position
        return


def _damaged_at(tar: tarfile.TarFile, size: int) -> int | None:
    """Return the byte at which the shard is damaged; None if it ends with a block of zeros as it should."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    return None if len(block) == tarfile.BLOCKSIZE and not any(block) else min(tar.offset, size)


def _row(tar: tarfile.TarFile, path: str, key: str, parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    picture = next((parts[kind] for kind in _KINDS if kind in parts), None)
    place = None if picture is None else {"path": path, "offset": picture.offset_data, "size": picture.size}
    captions: list[str] = []
    problem: str | None = None
    try:
        if (written := next((parts[kind] for kind in _TEXTS if kind in parts), None)) is not None:
            captions = [_read(tar, written).decode("utf-8-sig")]
        elif (described := parts.get("json")) is not None:
            captions, _, problem = texts_of(json.loads(_read(tar, described).decode("utf-8-sig")))
    except UnicodeDecodeError:
        problem = "caption is not UTF-8"
    except (ValueError, TypeError, AttributeError, RecursionError):
        problem = "caption: the JSON beside the picture is not an object"
    if place is None:
        problem = "no picture in the shard"
    return {"key": key, "picture": place, "captions": captions, "problem": problem}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: Any = tar.fileobj
    file.seek(member.offset_data)
    content: bytes = file.read(min(member.size, _MAX_CAPTION_BYTES))
    return content
