"""The places in which scenes are set: small vector drawings of our own, without anything that has a name here."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from llmdiff.world.things import parts, read_table


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place and how captions say that something is there; `held_out_phrases` are in no training caption."""

    name: str
    phrases: tuple[str, ...]
    rich_phrases: tuple[str, ...]
    held_out_phrases: tuple[str, ...]

    @property
    def svg(self) -> str:
        """Its drawing."""
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
