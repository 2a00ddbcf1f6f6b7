"""Requirements of captions, in a form that a checker compares with the contents of a picture."""

from collections import Counter
from dataclasses import dataclass

from llmdiff.world.layouts import Relation


@dataclass(frozen=True, kw_only=True)
class ExpectedThing:
    """One kind of thing in a caption; None for properties that the caption leaves open."""

    name: str
    count: int = 1
    colour: str | None = None
    size: str | None = None
    upside_down: bool = False
    who: str | None = None
    spot: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The requirements of a caption: a picture that meets all of them is right.

    Fields:
        things: things in the order of the relation; nothing else may be in the picture.
        relation: left, right, above, below: position of the first thing relative to the second; between: the first
            between the other two; row, column: from left to right, from top to bottom; spots, corner: see `spot`;
            None: any positions.
        absent: names in the caption of things that must not be in the picture.
    """

    things: tuple[ExpectedThing, ...]
    relation: Relation | None = None
    style: str | None = None
    place: str | None = None
    background: str | None = None
    absent: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """Return the required number of things by name."""
        total: Counter[str] = Counter()
        for thing in self.things:
            total[thing.name] += thing.count
        return total
