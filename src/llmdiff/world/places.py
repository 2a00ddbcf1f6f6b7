"""The places of scenes: our own small vector drawings, which contain none of the world's things."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from llmdiff.world.things import parts, read_table


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place and its phrases in captions; `held_out_phrases` are in no training caption."""

    name: str
    phrases: tuple[str, ...]
    rich_phrases: tuple[str, ...]
    held_out_phrases: tuple[str, ...]

    @property
    def svg(self) -> str:
        """Return its drawing as SVG."""
        file = files("llmdiff.world") / "data" / "places" / f"{self.name.replace(' ', '_')}.svg"
        return file.read_text(encoding="utf-8")


@lru_cache
def places() -> dict[str, Place]:
    """Return every place by its name."""
    rows = read_table("places")
    return {
        row["name"]: Place(
            name=row["name"],
            phrases=parts(row["phrases"]),
            rich_phrases=parts(row["rich_phrases"]),
            held_out_phrases=parts(row["held_out_phrases"]),
        )
        for row in rows
    }
