"""Positions of the things in a scene, without overlap and large enough to recognise."""

import random
from collections.abc import Sequence
from typing import Literal, get_args

Relation = Literal[
    "alone", "corner", "group", "left", "right", "above", "below", "between", "row", "column", "spots"
]
"""Relations between the things of a scene.

alone, corner: one thing, near the middle or in a corner. group: one to three kinds, several of each, anywhere. left,
right, above, below: position of the first thing relative to the second. between: the first between the second and the
third. row, column: from left to right, from top to bottom. spots: each in a corner or in the middle.
"""
RELATIONS: tuple[Relation, ...] = get_args(Relation)
OPPOSITE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SPOTS = (*CORNERS, "middle")
_LOW, _HIGH = 0.195, 0.805
_SPOT_XY = {
    "top left": (_LOW, _LOW),
    "top right": (_HIGH, _LOW),
    "bottom left": (_LOW, _HIGH),
    "bottom right": (_HIGH, _HIGH),
    "middle": (0.5, 0.5),
}
Position = tuple[float, float, float]


def positions(
    relation: Relation, things: Sequence[tuple[str | None, str | None]], rng: random.Random
) -> list[Position]:
    """Return centre x, centre y and side of each thing. Units: shares of the picture's side.

    `things` are sizes and spots in the order of the relation.
    """
    if relation == "alone":
        side = {"small": 0.38, "large": 0.82}.get(things[0][0] or "", 0.6) + rng.uniform(-0.03, 0.03)
        room = min(max(0.5 - side / 2, 0.0), 0.22)
        return [(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), side)]
    if relation in ("corner", "spots"):
        side = 0.42 if relation == "corner" else rng.uniform(0.29, 0.33)
        return [_at_spot(spot or "middle", side, rng) for _, spot in things]
    if relation == "group":
        return _in_cells(len(things), rng)
    if relation in ("left", "right", "above", "below"):
        return _in_pair(relation, [size for size, _ in things], rng)
    # Three in a line; for "between", the first is in the middle.
    line = [(place, 0.5 + rng.uniform(-0.1, 0.1)) for place in (0.175, 0.5, 0.825)]
    if relation == "between":
        outer = rng.sample((line[0], line[2]), 2)
        line = [line[1], *outer]
    side = rng.uniform(0.29, 0.31)
    down = relation == "column" or (relation == "between" and rng.random() < 0.25)
    return [(across, along, side) if down else (along, across, side) for along, across in line]


def _at_spot(spot: str, side: float, rng: random.Random) -> Position:
    x, y = _SPOT_XY[spot]
    shift = side / 2 - 0.16 if side > 0.4 else 0.0
    x, y = (value + (shift if value < 0.5 else -shift if value > 0.5 else 0) for value in (x, y))
    return x + rng.uniform(-0.025, 0.025), y + rng.uniform(-0.025, 0.025), side


def _in_cells(count: int, rng: random.Random) -> list[Position]:
    columns, rows = (2, 2) if count <= 4 else (3, 2) if rng.random() < 0.5 else (2, 3)
    cells = rng.sample([(i, j) for i in range(columns) for j in range(rows)], count)
    side = rng.uniform(0.36, 0.42) if count <= 4 else rng.uniform(0.28, 0.31)
    reach_x, reach_y = (max(1 / n - side * 1.1, 0) / 2 for n in (columns, rows))
    return [
        (
            (i + 0.5) / columns + rng.uniform(-reach_x, reach_x),
            (j + 0.5) / rows + rng.uniform(-reach_y, reach_y),
            side,
        )
        for i, j in cells
    ]


def _in_pair(relation: str, sizes: Sequence[str | None], rng: random.Random) -> list[Position]:
    both = {"small": 0.3, "large": 0.5}
    sides = [both.get(size or "", 0.41) + rng.uniform(-0.015, 0.015) for size in sizes]
    if sizes[0] == sizes[1] == "large":
        sides = [0.45, 0.45]
    gap = (1 - sum(sides)) / 3
    along = [gap + sides[0] / 2, 1 - gap - sides[1] / 2]
    if relation in ("right", "below"):
        along = [1 - place for place in along]
    found = []
    for place, side in zip(along, sides, strict=True):
        room = min((1 - side) / 2, 0.16)
        across = 0.5 + rng.uniform(-room, room)
        place += rng.uniform(-gap, gap) * 0.3
        found.append((place, across, side) if relation in ("left", "right") else (across, place, side))
    return found
