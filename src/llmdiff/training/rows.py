"""One sample as a source gives it, and what every source has in common."""

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
    """One sample as it was found: nothing about it is known to be right.

    Fields:
        captions: texts, None where a column has none, or whatever stood in their place.
        plain_captions: what the base's own text encoder reads instead of each caption, see `training.warm_start`;
            empty if it reads the captions themselves.
        content: gives the picture's file, or raises; `decode` gives the picture in it, or raises.
        size_px: width and height of a picture that is made from its content and always good; None: it is checked.
        problem: why it cannot be used, where that is known already.
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
        """The captions that are not None, read as prompts are: without invisible characters at their ends."""
        return [_cleaned(text) for text in self.captions if text is not None]

    @property
    def plain_texts(self) -> list[Any]:
        """What the base's own text encoder reads instead of each of `texts`."""
        return [_cleaned(text) for text in self.plain_captions] or self.texts


class Source(Protocol):
    """Samples by number; `fingerprint` changes whenever they may have."""

    fingerprint: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return one sample."""
        ...


def is_whole_text(text: str) -> bool:
    """Return whether a text can be written as UTF-8: half a character, a lone surrogate, cannot."""
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
    """Return a name that may be no UTF-8 as text that is."""
    return name.encode("utf-8", "backslashreplace").decode()
