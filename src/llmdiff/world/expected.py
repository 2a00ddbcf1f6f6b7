"""What a caption asks for, in a form that a checker can compare with what it sees in a picture."""

from collections import Counter
from dataclasses import asdict, dataclass

from llmdiff.world.layouts import Relation


@dataclass(frozen=True, kw_only=True)
class ExpectedThing:
    """One kind of thing that a caption asks for; None where it leaves something open."""

    name: str
    count: int = 1
    colour: str | None = None
    size: str | None = None
    upside_down: bool = False
    who: str | None = None
    spot: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a caption asks for: only what it says, so a picture is right if all of this is so.

    Fields:
        things: in the order of the relation; nothing else may be in the picture.
        relation: left, right, above, below: the first thing from the second; between: the first between the
            other two; row, column: from left to right, from top to bottom; spots, corner: see `spot`;
            None: anywhere.
        absent: names that must not be seen, of which the caption speaks.
    """

    things: tuple[ExpectedThing, ...]
    relation: Relation | None = None
    style: str | None = None
    place: str | None = None
    background: str | None = None
    absent: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """How many of each name the picture shows."""
        total: Counter[str] = Counter()
        for thing in self.things:
            total[thing.name] += thing.count
        return total

    @property
    def coloured(self) -> Counter[tuple[str, str]]:
        """How many of each name and colour it shows, of things whose colour is asked for."""
        total: Counter[tuple[str, str]] = Counter()
        for thing in self.things:
            if thing.colour is not None:
                total[thing.name, thing.colour] += thing.count
        return total

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON, without what is left open."""
        kept = {key: value for key, value in asdict(self).items() if value}
        kept["things"] = [
            {key: value for key, value in asdict(thing).items() if value} for thing in self.things
        ]
        return kept
