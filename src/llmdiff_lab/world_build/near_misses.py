"""Scenes that differ from another one in one respect, to train and test models that judge pictures."""

import random
from collections.abc import Callable
from dataclasses import replace

from llmdiff.world.layouts import OPPOSITE
from llmdiff.world.places import places
from llmdiff.world.scenes import Scene, World, laid_out, one_thing
from llmdiff.world.things import BACKGROUNDS, COLOURS


def near_miss(scene: Scene, world: World, rng: random.Random) -> Scene:
    """Return a scene that differs in one respect: a thing, a colour, a number, a side, or the background."""
    changed = rng.choice([change for change in _CHANGES if change(scene, world, rng) is not None])
    other = changed(scene, world, rng)
    assert other is not None
    return laid_out(other, rng)


def _other_thing(scene: Scene, world: World, rng: random.Random) -> Scene:
    """Return the scene with one thing, or all things of one kind, replaced by another."""
    old = rng.choice(scene.things)
    new = old
    present = {placed.name for placed in scene.things}
    many = sum(placed.kind == old.kind for placed in scene.things) > 1
    while new.name in present or (many and (new.thing.is_action or new.thing.countable is None)):
        new = one_thing(world, scene.style, rng)
    new = replace(new, size=old.size, spot=old.spot, upside_down=False)
    things = tuple(new if placed.kind == old.kind else placed for placed in scene.things)
    return replace(scene, things=things)


def _other_colour(scene: Scene, world: World, rng: random.Random) -> Scene | None:
    painted = [placed for placed in scene.things if placed.colour]
    if not painted:
        return None
    old = rng.choice(painted)
    taken = {placed.colour for placed in scene.things if placed.name == old.name}
    colours = [colour for colour in COLOURS if colour not in taken]
    new = replace(old, colour=rng.choice(colours))
    return replace(scene, things=tuple(new if one.kind == old.kind else one for one in scene.things))


def _other_number(scene: Scene, world: World, rng: random.Random) -> Scene | None:
    if scene.relation != "group" or len(scene.groups) != 1:
        return None
    count = len(scene.things)
    others = [number for number in (count - 1, count + 1) if 2 <= number <= 6]
    return replace(scene, things=scene.things[:1] * rng.choice(others))


def _other_side(scene: Scene, world: World, rng: random.Random) -> Scene | None:
    if scene.relation not in OPPOSITE:
        return None
    return replace(scene, relation=OPPOSITE[scene.relation])  # type: ignore[arg-type]


def _other_behind(scene: Scene, world: World, rng: random.Random) -> Scene | None:
    if scene.place is not None:
        return replace(scene, place=rng.choice([name for name in places() if name != scene.place]))
    return replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))


_CHANGES: tuple[Callable[[Scene, World, random.Random], Scene | None], ...] = (
    _other_thing,
    _other_colour,
    _other_number,
    _other_side,
    _other_behind,
)
