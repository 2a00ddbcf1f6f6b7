"""One sample of a source, and the interface of sources."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import PromptError
from llmdiff.files import clean_text

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One unchecked sample.

    Fields:
        captions: texts, None for empty columns, or values of a wrong type.
        plain_captions: wordings for the base's own text encoder, one for each caption, see `training.warm_start`;
            empty if it reads the captions themselves.
        content: returns the bytes of the picture's file or raises an exception; `decode` returns the picture in them
            or raises an exception.
        size_px: width and height of a generated picture, which needs no check; None for other pictures.
        problem: the reason if the sample is known to be bad.
    """

    key: str
    captions: Sequence[Any]
    content: Callable[[], bytes]
    plain_captions: Sequence[Any] = ()
    decode: Callable[[bytes], Image.Image] = open_picture
    size_px: tuple[int, int] | None = None
    problem: str | None = None

    @property
    def texts(self) -> list[Any]:
        """Return the captions that are not None, cleaned like prompts: without invisible characters at their ends."""
        return [_cleaned(text) for text in self.captions if text is not None]

    @property
    def plain_texts(self) -> list[Any]:
        """Return the plain wordings of `texts` for the base's own text encoder."""
        return [_cleaned(text) for text in self.plain_captions] or self.texts


class Source(Protocol):
    """Samples by index; `fingerprint` changes whenever samples may have changed."""

    fingerprint: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return one sample."""
        ...


def is_whole_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8, which is not so for lone surrogates."""
    try:
        clean_text("caption", text)
    except PromptError:
        return False
    return True


def _cleaned(text: Any) -> Any:
    try:
        return clean_text("caption", text) if isinstance(text, str) else text
    except PromptError:
        return text


def shown(name: str) -> str:
    """Return a name with characters escaped that UTF-8 cannot encode."""
    return name.encode("utf-8", "backslashreplace").decode()
