"""Samples in tables of the `datasets` library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmdiff.environment import check_extra
from llmdiff.errors import DataError, InputFileError, first_line
from llmdiff.files import MAX_PICTURE_BYTES, read_bytes
from llmdiff.training.rows import Row


class TableSource:
    """Samples in a table of the `datasets` library, without its decoding of pictures.

    A picture is stored as the bytes of a file or as a path (both as in `datasets.Image`), or as an offset in a file.
    """

    def __init__(
        self,
        table: Any,
        *,
        image: str,
        captions: Sequence[str],
        plain: str | None = None,
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

        self.fingerprint = fingerprint or str(table._fingerprint)
        kept = dict.fromkeys((image, *captions, plain, key, "problem"))
        table = table.select_columns([name for name in kept if name in table.column_names])
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
            elif name == image and not isinstance(feature, datasets.Value | dict):
                raise DataError(f"column {name!r} holds {feature}, expected one picture: set image_column")
        self._table, self._image, self._captions, self._plain, self._key = table, image, captions, plain, key

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Row:
        """Return one sample, with the reason in `problem` if it cannot be read."""
        try:
            found = self._table[index]
        except Exception as error:  # pyarrow's, for texts that are not UTF-8
            problem = f"the row cannot be read ({first_line(error)})"
            return Row(key=f"row {index}", captions=[], content=bytes, problem=problem)
        captions: list[Any] = []
        for name in self._captions:
            captions += found[name] if isinstance(found[name], list) else [found[name]]
        return Row(
            key=str(found[self._key]) if self._key else f"row {index}",
            captions=captions,
            plain_captions=found[self._plain] if self._plain else (),
            content=lambda: _content(found[self._image]),
            problem=found.get("problem"),
        )


def hub_source(
    name: str, *, split: str, image_column: str, caption_columns: Sequence[str], cache: Path
) -> TableSource:
    """Return the samples of a Hub data set or of a folder that `datasets.load_dataset` can read.

    Raises:
        DataError: the data set cannot be loaded or lacks a column.
    """
    check_extra("train", "datasets")
    import datasets

    try:
        table = datasets.load_dataset(name, split=split, cache_dir=str(cache))
    except Exception as error:  # its own exceptions, and those of pyarrow, fsspec and the Hub
        raise DataError(
            f"data set {name!r} (split {split!r}) cannot be loaded: {innermost(error)}"
        ) from error
    return TableSource(table, image=image_column, captions=caption_columns)


def innermost(error: BaseException) -> str:
    """Return the message of an error's first cause; `datasets` hides it behind general ones."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return first_line(error) if isinstance(error, Exception) else type(error).__name__


def _content(stored: Any) -> bytes:
    if isinstance(stored, dict):
        if (path := stored.get("path")) and stored.get("size") is not None:
            return _part(Path(path), stored["offset"], stored["size"])
        stored = path if stored.get("bytes") is None else stored["bytes"]
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, str):
        return read_bytes(Path(stored), max_bytes=MAX_PICTURE_BYTES)
    raise InputFileError(
        "no picture" if stored is None else f"expected a picture, got a {type(stored).__name__}"
    )


def _part(path: Path, offset: int, size: int) -> bytes:
    if size > MAX_PICTURE_BYTES:
        raise InputFileError(f"the picture has {size:,} bytes, expected at most {MAX_PICTURE_BYTES:,}")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise InputFileError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
