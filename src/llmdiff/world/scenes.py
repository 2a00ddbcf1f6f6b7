"""Scenes as data: things and their positions, reproducible by seed and index."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Literal, TypeVar, get_args

from llmdiff.world.layouts import CORNERS, SPOTS, Relation, positions
from llmdiff.world.places import places
from llmdiff.world.things import BACKGROUNDS, COLOURS, STYLES, Style, Thing, Who, all_things, read_table

T = TypeVar("T")
Size = Literal["small", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
_STYLE_SHARES: dict[Style, float] = {"flat": 0.7, "line": 0.15, "3d": 0.15}
_RELATION_SHARES: dict[Relation, float] = {
    "alone": 0.22,
    "corner": 0.05,
    "group": 0.25,
    "left": 0.07,
    "right": 0.07,
    "above": 0.07,
    "below": 0.07,
    "between": 0.05,
    "row": 0.03,
    "column": 0.02,
    "spots": 0.15,
}
_SHAPE_SHARE, _ACTION_SHARE, _COLOURED_SHARE = 0.08, 0.14, 0.2
_PORTRAIT_SIDES = 0.55, 0.95
_PLACE_SHARE, _SIZED_SHARE, _TURNED_SHARE, _ABSENT_SHARE = 0.35, 0.35, 0.05, 0.08


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One thing in a scene. Units: centre and side in shares of the picture's side.

    Fields:
        colour: the colour it is painted in; None keeps its natural colours.
        size: its size in captions; None: not mentioned.
        who: the person of an action, if the drawings distinguish persons.
        spot: the corner or the middle, for the relations "corner" and "spots".
    """

    name: str
    style: Style = "flat"
    colour: str | None = None
    size: Size | None = None
    upside_down: bool = False
    who: Who | None = None
    spot: str | None = None
    x: float = 0.5
    y: float = 0.5
    side: float = 0.6

    @property
    def thing(self) -> Thing:
        """Return its row of the tables."""
        return all_things()[self.name]

    @property
    def kind(self) -> tuple[str, str | None, str | None, bool, str | None, str | None]:
        """Return the properties that are equal for things of the same kind in a group."""
        return self.name, self.colour, self.size, self.upside_down, self.who, self.spot


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The contents of one picture.

    Fields:
        relation: relation of the things; `things` are in its order ("left": the first is left).
        background: colour of a plain background, None in a place.
        place: name of the place, None with a plain background.
        absent: things that captions may mention as absent.
    """

    things: tuple[Placed, ...]
    relation: Relation
    background: str | None = None
    place: str | None = None
    absent: tuple[str, ...] = ()

    @property
    def style(self) -> Style:
        """Return the style of all its things."""
        return self.things[0].style

    @property
    def groups(self) -> list[tuple[Placed, int]]:
        """Return the kinds of things in order, each with its number."""
        grouped = (list(same) for _, same in groupby(self.things, key=lambda placed: placed.kind))
        return [(same[0], len(same)) for same in grouped]


@dataclass(frozen=True, kw_only=True)
class World:
    """The things and styles that scenes are sampled from: all, or fewer for a smaller model.

    Fields:
        thing_count: number of things, including actions and shapes; None takes all. The most common things are first,
            in the order of `data/common.tsv`, then the others, evenly from all groups.
        styles: the styles of scenes; rendering `3d` needs a folder of pictures (`artwork.use_fluent`).
    """

    thing_count: int | None = None
    styles: tuple[Style, ...] = STYLES

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        """Return the things of this world."""
        every = tuple(all_things().values())
        if self.thing_count is None:
            return every
        if not 20 <= self.thing_count <= len(every):
            raise ValueError(f"thing_count: got {self.thing_count}, expected 20 to {len(every)}")
        groups = [list(same) for _, same in groupby(every, key=lambda thing: thing.group)]
        # Merge groups evenly by the relative rank of their things.
        ranked = sorted((i / len(same), thing.name) for same in groups for i, thing in enumerate(same))
        common = [row["name"] for row in read_table("common")]
        chosen = list(dict.fromkeys([*common, *(name for _, name in ranked)]))[: self.thing_count]
        return tuple(thing for thing in every if thing.name in chosen)

    @cached_property
    def names(self) -> frozenset[str]:
        """Return the names of its things."""
        return frozenset(thing.name for thing in self.things)

    @cached_property
    def choices(self) -> dict[tuple[Style, str], tuple[Thing, ...]]:
        """Return the things of each style by kind: plain things, actions, shapes, things that can be painted."""
        tests: dict[str, Callable[[Thing], bool]] = {
            "thing": lambda thing: not thing.is_action and not thing.is_shape,
            "action": lambda thing: thing.is_action,
            "shape": lambda thing: thing.is_shape,
            "painted": lambda thing: bool(thing.fills),
            "counted": lambda thing: not thing.is_action and thing.countable is not None,
        }
        return {
            (style, kind): tuple(thing for thing in self.things if style in thing.styles and test(thing))
            for style in self.styles
            for kind, test in tests.items()
        }


def any_scene(world: World, rng: random.Random) -> Scene:
    """Return a scene of this world, held-out parts included, without its positions."""
    style = _chosen(rng, {style: _STYLE_SHARES[style] for style in world.styles})
    relation = _chosen(rng, _RELATION_SHARES)
    if relation == "group":
        things = _groups(world, style, rng)
    else:
        count = {"alone": 1, "corner": 1, "between": 3, "row": 3, "column": 3}.get(relation, 2)
        if relation == "spots":
            count = rng.choice((3, 4, 5))
        things = _distinct(world, style, rng, count)
    if relation == "spots":
        spots = rng.sample(SPOTS, len(things))
        things = [replace(placed, spot=spot) for placed, spot in zip(things, spots, strict=True)]
    elif relation == "corner":
        things = [replace(things[0], spot=rng.choice(CORNERS))]
    elif relation in ("alone", "left", "right", "above", "below"):
        things = [_sized(placed, rng) for placed in things]
    place = None
    if style != "line" and rng.random() < _PLACE_SHARE:
        place = rng.choice(tuple(places()))
    white = rng.random() < (0.5 if style == "line" else 0.2)
    background = None if place else "white" if white else rng.choice(tuple(BACKGROUNDS))
    absent: tuple[str, ...] = ()
    if rng.random() < _ABSENT_SHARE:
        absent = tuple(_absent(world, style, [placed.name for placed in things], rng))
    return Scene(things=tuple(things), relation=relation, background=background, place=place, absent=absent)


def portrait(world: World, rng: random.Random) -> Scene:
    """Return one thing on a plain background, as large as things are in scenes of twice the side."""
    style = _chosen(rng, {style: _STYLE_SHARES[style] for style in world.styles})
    side = rng.uniform(*_PORTRAIT_SIDES)
    room = max(0.5 - side / 2, 0.0)
    x, y = (0.5 + rng.uniform(-room, room) for _ in "xy")
    placed = replace(one_thing(world, style, rng), x=round(x, 4), y=round(y, 4), side=round(side, 4))
    return Scene(things=(placed,), relation="alone", background=rng.choice(tuple(BACKGROUNDS)))


def laid_out(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with a position and a side for each of its things."""
    where = positions(scene.relation, [(placed.size, placed.spot) for placed in scene.things], rng)
    things = (
        replace(placed, x=round(x, 4), y=round(y, 4), side=round(side, 4))
        for placed, (x, y, side) in zip(scene.things, where, strict=True)
    )
    return replace(scene, things=tuple(things))


def one_thing(world: World, style: Style, rng: random.Random) -> Placed:
    """Return a thing, an action, a shape or a painted thing of this style."""
    if style == "flat":
        drawn = rng.random()
        if drawn < _SHAPE_SHARE and world.choices[style, "shape"]:
            shape = rng.choice(world.choices[style, "shape"])
            return Placed(name=shape.name, colour=rng.choice(tuple(COLOURS)))
        if drawn < _SHAPE_SHARE + _COLOURED_SHARE and world.choices[style, "painted"]:
            painted = rng.choice(world.choices[style, "painted"])
            return Placed(name=painted.name, colour=rng.choice(tuple(COLOURS)))
    if rng.random() < _ACTION_SHARE and world.choices[style, "action"]:
        action = rng.choice(world.choices[style, "action"])
        return Placed(name=action.name, style=style, who=rng.choice(action.who) if action.who else None)
    thing = rng.choice(world.choices[style, "thing"])
    return Placed(name=thing.name, style=style, upside_down=thing.turns and rng.random() < _TURNED_SHARE)


def _distinct(world: World, style: Style, rng: random.Random, count: int) -> list[Placed]:
    found: list[Placed] = []
    while len(found) < count:
        placed = one_thing(world, style, rng)
        # The same thing again only in another colour: "a red car left of a blue car".
        if all(
            placed.name != other.name or (placed.colour and other.colour and placed.colour != other.colour)
            for other in found
        ):
            found.append(placed)
    return found


def _groups(world: World, style: Style, rng: random.Random) -> list[Placed]:
    """Return two to six things of one to three kinds, ordered by kind."""
    counts = [rng.randint(2, 6)]
    if rng.random() < 0.5:
        counts = rng.choice(
            ([1, 1], [2, 1], [1, 2], [2, 2], [3, 1], [1, 3], [3, 2], [2, 3], [1, 1, 1], [2, 1, 1])
        )
    things: list[Placed] = []
    for count, placed in zip(counts, _distinct(world, style, rng, len(counts)), strict=True):
        while count > 1 and (
            placed.thing.is_action
            or placed.thing.countable is None
            or placed.name in [other.name for other in things]
        ):
            placed = one_thing(world, style, rng)
        things += [replace(placed, upside_down=False)] * count
    return things


def _sized(placed: Placed, rng: random.Random) -> Placed:
    return replace(placed, size=rng.choice(SIZES)) if rng.random() < _SIZED_SHARE else placed


def _absent(world: World, style: Style, present: list[str], rng: random.Random) -> list[str]:
    others = [
        thing.name for thing in rng.sample(world.choices[style, "counted"], 6) if thing.name not in present
    ]
    return others[: rng.choice((1, 1, 2))]


def _chosen(rng: random.Random, shares: Mapping[T, float]) -> T:
    return rng.choices(tuple(shares), tuple(shares.values()))[0]
