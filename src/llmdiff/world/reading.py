"""Contents of a picture as a checker reads them, and their comparison with the requirements of a caption."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from llmdiff.world.expected import Expected, ExpectedThing
from llmdiff.world.layouts import CORNERS, OPPOSITE
from llmdiff.world.scenes import Scene
from llmdiff.world.things import all_things

UNCLEAR = "unclear"
Fault = Literal[
    "thing missing", "extra thing", "unwanted thing", "wrong count", "wrong person", "wrong colour",
    "wrong size", "wrong way up", "wrong relation", "wrong place", "wrong background", "wrong style",
]  # fmt: skip
FAULTS: tuple[Fault, ...] = get_args(Fault)
FAULTS_OF: dict[str, tuple[Fault, ...]] = {
    "things": ("thing missing", "extra thing", "unwanted thing"),
    "count": ("wrong count",),
    "colours": ("wrong colour",),
    "size": ("wrong size",),
    "way up": ("wrong way up",),
    "person": ("wrong person",),
    "relation": ("wrong relation",),
    "place": ("wrong place",),
    "background": ("wrong background",),
    "style": ("wrong style",),
    "absent": ("unwanted thing",),
}
"""The parts of a verdict, and the possible faults of each."""
_OF_SINGLE_THINGS = ("wrong person", "wrong colour", "wrong size", "wrong way up", "wrong relation")
# Midpoints between the sides in `layouts.positions`, for a thing alone and for a thing beside another.
_SMALL_ALONE, _LARGE_ALONE, _SMALL_OF_TWO, _LARGE_OF_TWO = 0.49, 0.71, 0.355, 0.43
# Limits of corners and middle; things between them are in neither.
_THIRDS = (0.36, 0.64)


@dataclass(frozen=True, kw_only=True)
class SeenThing:
    """One thing in a picture. Units: centre and side in shares of the picture's side.

    Fields:
        name: "unclear" if no class is likelier than all others together.
        colour: colour of shapes and recoloured things; None: natural colours.
        side: the side as in `Placed.side`, without the stretch of long drawings.
    """

    name: str
    x: float
    y: float
    side: float
    style: str = "flat"
    colour: str | None = None
    who: str | None = None
    upside_down: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The contents of a picture: its things, and the place or the plain background behind them."""

    things: tuple[SeenThing, ...]
    place: str | None = None
    background: str | None = None

    @property
    def style(self) -> str | None:
        """Return the style of all its things; None if they differ or there are none."""
        styles = {thing.style for thing in self.things}
        return styles.pop() if len(styles) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of a picture with its caption.

    Fields:
        parts: whether each required part is right. `things`: the picture has the required names and no others;
            `count`: the required number of each; `colours`, `size`, `way up`, `person`, `relation`, `place`,
            `background`, `style`; `absent`: things that must be absent are.
        faults: descriptions of faults; for missing things, only that they are missing.
        swapped: whether a relation is the opposite of the required one.
    """

    parts: dict[str, bool]
    faults: tuple[Fault, ...]
    swapped: bool = False

    @property
    def exact(self) -> bool:
        """Return whether all required parts are right."""
        return not self.faults


def matches(expected: Expected, reading: Reading) -> Verdict:
    """Compare the contents of a picture with the requirements of a caption, without open properties.

    Other things, and things upside down that should not be, are faults.
    """
    wanted, seen = expected.counts, Counter(thing.name for thing in reading.things)
    missing, extra = wanted.keys() - seen.keys(), seen.keys() - wanted.keys()
    unwanted = extra & set(expected.absent)
    is_related, swapped = _relation(expected, reading)
    wrong: dict[Fault, bool] = {
        "thing missing": bool(missing),
        "extra thing": bool(extra - unwanted),
        "unwanted thing": bool(unwanted),
        "wrong count": any(seen[name] not in (0, count) for name, count in wanted.items()),
        "wrong person": not _enough(
            expected, reading, lambda thing: thing.who, lambda seen, who: seen.who == who
        ),
        "wrong colour": not _enough(expected, reading, lambda thing: thing.colour, _same_colour),
        "wrong size": not _sizes_fit(expected, reading),
        "wrong way up": _turned(expected) != _turned_seen(reading, wanted),
        "wrong relation": not is_related,
        "wrong place": reading.place != expected.place,
        "wrong background": reading.background != expected.background,
        "wrong style": reading.style != expected.style,
    }
    asked = _asked_parts(expected)
    parts = {part: not any(wrong[fault] for fault in FAULTS_OF[part]) for part in asked}
    parts["count"] = parts["count"] and seen.total() == wanted.total()
    faults = [fault for part in asked for fault in FAULTS_OF[part] if wrong[fault]]
    if missing:  # what is not there has no wrong colour either
        faults = [fault for fault in faults if fault not in _OF_SINGLE_THINGS]
    return Verdict(parts=parts, faults=tuple(sorted(faults, key=FAULTS.index)), swapped=swapped)


def reading_of(scene: Scene) -> Reading:
    """Return the contents of a render of this scene, as a perfect checker reads them."""
    return Reading(
        things=tuple(
            SeenThing(
                name=placed.name,
                x=placed.x,
                y=placed.y,
                side=placed.side,
                style=placed.style,
                colour=placed.colour,
                who=placed.who,
                upside_down=placed.upside_down,
            )
            for placed in scene.things
        ),
        place=scene.place,
        background=scene.background,
    )


def expected_of(scene: Scene) -> Expected:
    """Return all contents of a render of this scene as requirements."""
    return Expected(
        things=tuple(
            ExpectedThing(
                name=placed.name,
                count=count,
                colour=placed.colour,
                size=placed.size,
                upside_down=placed.upside_down,
                who=placed.who,
                spot=placed.spot,
            )
            for placed, count in scene.groups
        ),
        relation=None if scene.relation in ("alone", "group") else scene.relation,
        style=scene.style,
        place=scene.place,
        background=scene.background,
    )


def _asked_parts(expected: Expected) -> tuple[str, ...]:
    things = expected.things
    asked = {
        "things": True,
        "count": True,
        "colours": any(thing.colour for thing in things),
        "size": any(thing.size for thing in things),
        "way up": any(all_things()[thing.name].turns for thing in things),
        "person": any(thing.who for thing in things),
        "relation": expected.relation not in (None, "alone", "group"),
        "place": expected.place is not None,
        "background": expected.background is not None,
        "style": expected.style is not None,
        "absent": bool(expected.absent),
    }
    return tuple(part for part, is_asked in asked.items() if is_asked)


def _enough(
    expected: Expected,
    reading: Reading,
    attribute: Callable[[ExpectedThing], str | None],
    fits: Callable[[SeenThing, str], bool],
) -> bool:
    """Return whether the picture has the required number of things for every name and attribute."""
    wanted: Counter[tuple[str, str]] = Counter()
    for thing in expected.things:
        value = attribute(thing)
        if value is not None:
            wanted[thing.name, value] += thing.count
    return all(
        sum(seen.name == name and fits(seen, value) for seen in reading.things) >= count
        for (name, value), count in wanted.items()
    )


def _same_colour(seen: SeenThing, colour: str) -> bool:
    return (seen.colour or all_things()[seen.name].own_colour) == colour


def _sizes_fit(expected: Expected, reading: Reading) -> bool:
    alone = sum(thing.count for thing in expected.things) == 1
    small, large = (_SMALL_ALONE, _LARGE_ALONE) if alone else (_SMALL_OF_TWO, _LARGE_OF_TWO)
    for thing, found in zip(expected.things, _found(expected, reading), strict=True):
        if thing.size == "small" and not (found and all(seen.side < small for seen in found)):
            return False
        if thing.size == "large" and not (found and all(seen.side > large for seen in found)):
            return False
    return True


def _turned(expected: Expected) -> Counter[str]:
    return +Counter({
        thing.name: sum(other.count for other in expected.things if other.name == thing.name and other.upside_down)
        for thing in expected.things
    })  # fmt: skip


def _turned_seen(reading: Reading, names: Counter[str]) -> Counter[str]:
    return Counter(
        thing.name
        for thing in reading.things
        if thing.upside_down and thing.name in names and all_things()[thing.name].turns
    )


def _found(expected: Expected, reading: Reading) -> list[list[SeenThing]]:
    """Return the seen things of each required kind; colours matter only if they distinguish two kinds."""
    often = Counter(thing.name for thing in expected.things)
    return [
        [
            seen
            for seen in reading.things
            if seen.name == thing.name
            and (often[thing.name] == 1 or thing.colour is None or _same_colour(seen, thing.colour))
        ]
        for thing in expected.things
    ]


def _relation(expected: Expected, reading: Reading) -> tuple[bool, bool]:
    """Return whether the relation is right, and whether it is exactly the opposite."""
    relation, found = expected.relation, _found(expected, reading)
    if relation in (None, "alone", "group"):
        return True, False
    if any(len(seen) != 1 for seen in found):
        return False, False
    things = [seen[0] for seen in found]
    if relation in ("corner", "spots"):
        spots = [thing.spot for thing in expected.things]
        return all(_spot(seen) == spot for seen, spot in zip(things, spots, strict=True)), False
    if relation in OPPOSITE:
        shown = _direction(things[0], things[1])
        return shown == relation, shown == OPPOSITE[relation]
    if relation == "between":
        first, second, third = things
        return _direction(second, first) == _direction(first, third), False
    step = "left" if relation == "row" else "above"
    return _in_line(things, step), _in_line(things, OPPOSITE[step])


def _in_line(things: Sequence[SeenThing], step: str) -> bool:
    return all(_direction(first, second) == step for first, second in pairwise(things))


def _direction(first: SeenThing, second: SeenThing) -> str:
    """Return the direction of the first thing from the second."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _spot(thing: SeenThing) -> str | None:
    low, high = _THIRDS
    if low < thing.x < high and low < thing.y < high:
        return "middle"
    across = "left" if thing.x <= low else "right" if thing.x >= high else ""
    along = "top" if thing.y <= low else "bottom" if thing.y >= high else ""
    spot = f"{along} {across}"
    return spot if spot in CORNERS else None
