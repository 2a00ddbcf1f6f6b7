"""Where pictures and captions come from: folders, data sets of the Hub, tar shards, the embedded default's scenes.

All but the scenes are opened by the `datasets` library, which keeps them on disk, in memory-mapped tables.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from llmdiff.environment import check_extra
from llmdiff.errors import DataError, first_line

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_CAPTION_KEYS = ("text", "caption", "captions")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample as it was found: nothing about it is known to be right.

    Fields:
        captions: texts, or whatever stood in their place.
        open: gives the picture, or raises.
        problem: why it cannot be used, where that is known already.
    """

    key: str
    captions: Sequence[Any]
    open: Callable[[], Image.Image]
    problem: str | None = None


class Source(Protocol):
    """Samples by number; `fingerprint` changes whenever they do."""

    fingerprint: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return one sample."""
        ...


class TableSource:
    """Samples in a table of the `datasets` library."""

    def __init__(
        self,
        table: Any,
        *,
        image: str,
        captions: Sequence[str],
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        missing = [name for name in (image, *captions) if name not in table.column_names]
        if missing:
            raise DataError(
                f"the data has no column {missing[0]!r}, it has {', '.join(table.column_names)}: set image_column "
                "and caption_columns"
            )
        import datasets

        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        self._table, self._image, self._captions, self._key = table, image, captions, key
        self.fingerprint = fingerprint or str(table._fingerprint)

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Row:
        """Return one sample."""
        found = self._table[index]
        captions: list[Any] = []
        for name in self._captions:
            captions += found[name] if isinstance(found[name], list) else [found[name]]
        return Row(
            key=str(found[self._key]) if self._key else f"row {index}",
            captions=captions,
            open=lambda: _opened(found[self._image]),
            problem=found.get("problem"),
        )


class SceneSource:
    """Scenes of the embedded default's world, drawn when they are asked for: no file is needed."""

    def __init__(self, count: int, *, objects: int, image_size_px: int, seed: int) -> None:
        from llmdiff.openmoji.contents import World

        self._world, self._count, self._size_px, self._seed = (
            World(objects=objects),
            count,
            image_size_px,
            seed,
        )
        self.fingerprint = f"scenes-{count}-{objects}-{image_size_px}-{seed}"

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        """Return one sample; the same number is always the same scene and caption."""
        import numpy as np

        from llmdiff.openmoji.captions import caption
        from llmdiff.openmoji.scenes import draw, lay_out

        rng = np.random.default_rng([self._seed, 12, index])
        content = self._world.training_content(rng)
        text, scene = caption(content, self._world, rng), lay_out(content, rng)
        return Row(
            key=f"scene {index}",
            captions=[text],
            open=lambda: Image.fromarray(draw(scene, image_size_px=self._size_px)),
        )


def folder_source(folder: Path) -> TableSource:
    """Return the pictures of a folder, with captions from `metadata.jsonl` or from a text file beside each.

    A line of `metadata.jsonl` has `file_name` and `text`, `caption` or `captions`. Without that file, `cat.jpg`'s
    captions are the lines of `cat.txt`.

    Raises:
        DataError: no such folder, or no pictures in it.
    """
    check_extra("train", "datasets")
    import datasets

    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder: expected pictures with metadata.jsonl or text files beside them"
        )
    metadata = folder / "metadata.jsonl"
    rows = list(_metadata_rows(metadata) if metadata.is_file() else _text_file_rows(folder))
    if not rows:
        raise DataError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}) and no metadata.jsonl")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    digest = sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()
    table = datasets.Dataset.from_dict(columns)
    return TableSource(table, image="path", captions=["captions"], key="key", fingerprint=digest)


def hub_source(
    name: str, *, split: str, image_column: str, caption_columns: Sequence[str], cache: Path
) -> TableSource:
    """Return a data set of the Hub, or a folder that `datasets.load_dataset` can read.

    Raises:
        DataError: it cannot be loaded, or lacks a column.
    """
    check_extra("train", "datasets")
    import datasets

    try:
        table = datasets.load_dataset(name, split=split, cache_dir=str(cache))
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the Hub's
        raise DataError(
            f"data set {name!r} (split {split!r}) cannot be loaded: {first_line(error)}"
        ) from error
    return TableSource(table, image=image_column, captions=caption_columns)


def shards_source(pattern: str, *, cache: Path) -> TableSource:
    """Return the samples of WebDataset tar shards as img2dataset writes them: KEY.jpg and KEY.txt.

    They are copied once into a table under `cache`, which takes as much room as they do.

    Raises:
        DataError: no such shards, or one that cannot be read.
    """
    check_extra("train", "datasets")
    import datasets

    picture = datasets.Image(decode=False)
    kinds = [suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES]
    text = datasets.Value("string")
    features = datasets.Features(
        {"__key__": text, "__url__": text, "txt": text, **dict.fromkeys(kinds, picture)}
    )
    try:
        table = datasets.load_dataset(
            "webdataset",
            data_files={"train": pattern},
            split="train",
            features=features,
            cache_dir=str(cache),
        )
    except Exception as error:
        raise DataError(f"shards {pattern!r} cannot be read: {first_line(error)}") from error
    return _ShardTable(table, kinds)


class _ShardTable(TableSource):
    def __init__(self, table: Any, kinds: Sequence[str]) -> None:
        super().__init__(table, image=kinds[0], captions=["txt"], key="__key__")
        self._kinds = kinds

    def row(self, index: int) -> Row:
        found = self._table[index]
        pictures = [found[kind] for kind in self._kinds if found[kind] is not None]
        return Row(
            key=found["__key__"],
            captions=[found["txt"]],
            open=lambda: _opened(pictures[0]),
            problem=None if pictures else "no picture in the shard",
        )


def _opened(stored: Any) -> Image.Image:
    if isinstance(stored, str):
        return Image.open(stored)
    if stored["bytes"] is not None:
        return Image.open(io.BytesIO(stored["bytes"]))
    return Image.open(stored["path"])


def _metadata_rows(metadata: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(metadata.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        row: dict[str, Any] = {"key": f"line {number}", "path": "", "captions": [], "problem": None}
        try:
            found = json.loads(line)
            row["key"] = str(found["file_name"])
            row["path"] = str(metadata.parent / row["key"])
            captions: Any = next((found[name] for name in _CAPTION_KEYS if found.get(name) is not None), [])
        except (ValueError, KeyError, TypeError, AttributeError):
            row["problem"] = "metadata: not a JSON object with file_name"
        else:
            # One column, one type: what is no text is said to be none.
            listed = captions if isinstance(captions, list) else [captions]
            row["captions"] = [text if isinstance(text, str) else "" for text in listed]
            if any(not isinstance(text, str) for text in listed):
                row["problem"] = "caption is not a text"
        yield row


def _text_file_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
        beside = path.with_suffix(".txt")
        problem: str | None = None
        captions: list[str] = []
        try:
            captions = [line for line in beside.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError:
            problem = "no text file with a caption"
        except UnicodeDecodeError:
            problem = "caption is not UTF-8"
        key = path.relative_to(folder).as_posix()
        yield {"key": key, "path": str(path), "captions": captions, "problem": problem}
