"""Compare the content seen in a picture with the content that its prompt requests."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from llmdiff.openmoji.scenes import Content, Scene

UNCLEAR = "unclear"
RelationVerdict = Literal["right", "swapped", "wrong"]
SIZE_OF_PX = {16: "small", 28: "normal", 44: "big"}


@dataclass(frozen=True, kw_only=True)
class SeenThing:
    """One thing that a picture shows. Units: centre in pixels of a 64 x 64 scene.

    `name` is "unclear" if no class is more probable than all others together. `colour` is None except for shapes.
    """

    name: str
    colour: str | None
    size: str
    x_px: float
    y_px: float


@dataclass(frozen=True, kw_only=True)
class SeenScene:
    """What the checker sees in a picture."""

    things: tuple[SeenThing, ...]
    background: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which requested parts a picture shows; None for parts that the prompt leaves open.

    Fields:
        things: whether the picture has exactly the requested things, each as often as requested.
        colours: the same for shapes with their colours.
        count: whether the number of things is right.
    """

    things: bool
    colours: bool | None
    count: bool
    relation: RelationVerdict | None
    size: bool | None
    background: bool | None

    @property
    def exact(self) -> bool:
        """Return whether all requested parts are right."""
        parts = (self.things, self.colours, self.count, self.size, self.background)
        return all(part is not False for part in parts) and self.relation in (None, "right")


def scene_as_seen(scene: Scene) -> SeenScene:
    """Return the ground truth of a render of this scene."""
    things = [
        SeenThing(
            name=placed.item.name,
            colour=placed.item.colour,
            size=SIZE_OF_PX.get(placed.size_px, "other"),
            x_px=placed.x_px,
            y_px=placed.y_px,
        )
        for placed in scene.placed
    ]
    return SeenScene(things=tuple(things), background=scene.background)


def verdict(asked: Content, seen: SeenScene) -> Verdict:
    """Return which parts of `asked` the picture shows; parts that `asked` leaves open are not compared."""
    wanted = [item for item in asked.items for _ in range(asked.count)]
    shapes = Counter((item.name, item.colour) for item in wanted if item.colour is not None)
    shape_names = {name for name, _ in shapes}
    seen_shapes = Counter((thing.name, thing.colour) for thing in seen.things if thing.name in shape_names)
    return Verdict(
        things=Counter(item.name for item in wanted) == Counter(thing.name for thing in seen.things),
        colours=seen_shapes == shapes if shapes else None,
        count=len(seen.things) == len(wanted),
        relation=None if asked.relation is None else _relation(asked, seen),
        size=None if asked.size is None else [thing.size for thing in seen.things] == [asked.size],
        background=None if asked.background is None else seen.background == asked.background,
    )


def _relation(asked: Content, seen: SeenScene) -> RelationVerdict:
    first, second = asked.items
    # A wrong colour does not make the relation wrong, unless only colour tells the two things apart.
    by_colour = first.name == second.name
    places = [
        [
            (thing.x_px, thing.y_px)
            for thing in seen.things
            if thing.name == item.name and (not by_colour or thing.colour == item.colour)
        ]
        for item in (first, second)
    ]
    if any(len(found) != 1 for found in places):
        return "wrong"
    (x1, y1), (x2, y2) = places[0][0], places[1][0]
    sideways, upright = ("left" if x1 < x2 else "right"), ("above" if y1 < y2 else "below")
    shown = sideways if abs(x2 - x1) > abs(y2 - y1) else upright
    if shown == asked.relation:
        return "right"
    return "swapped" if {shown, asked.relation} in ({"left", "right"}, {"above", "below"}) else "wrong"
