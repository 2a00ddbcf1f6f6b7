"""Which contents scenes have in training, and which are held out for the splits of the evaluation."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llmdiff.openmoji.scenes import Content, Item
from llmdiff.openmoji.world import BACKGROUNDS, RELATIONS, SHAPE_COLOURS, SHAPES, SIZE_WORDS, Thing, things_of

Split = Literal["seen", "pairs", "colours", "phrasings", "synonyms", "indirect"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_MEANINGS: dict[Split, str] = {
    "seen": "contents, phrasings and words of the training captions, in new combinations",
    "pairs": "two objects that no training scene shows together",
    "colours": "a shape in a colour that no training scene gives it",
    "phrasings": "sentence forms that no training caption has",
    "synonyms": "names that no training caption uses (automobile for car)",
    "indirect": "descriptions that no training caption uses (the fruit that keeps the doctor away)",
}
_HELD_OUT_PAIR_SHARE = 0.12
_SHAPE_SHARE, _BACKGROUND_SHARE, _SIZE_SHARE = 0.25, 0.4, 0.6


def is_held_out_pair(first: str, second: str) -> bool:
    """Return whether these two objects never occur together in training (symmetric; determined by a hash)."""
    key = "|".join(sorted((first, second))).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32 < _HELD_OUT_PAIR_SHARE


def is_held_out_colour(shape: str, colour: str) -> bool:
    """Return whether this shape never has this colour in training: one shape for each of the eight colours."""
    position = list(SHAPE_COLOURS).index(colour)
    return SHAPES.index(shape) == (position * 5 + 1) % len(SHAPES)


@dataclass(frozen=True, kw_only=True)
class World:
    """The contents that scenes of a preset are drawn from.

    `objects` is the number of OpenMoji objects (24 in the `cpu` preset).
    """

    objects: int = 24

    @property
    def things(self) -> tuple[Thing, ...]:
        """Return the objects of this world."""
        return things_of(self.objects)

    def training_content(self, rng: np.random.Generator) -> Content:
        """Return a random content for training: no held-out pair, no held-out colour of a shape."""
        while True:
            content = self._any_content(rng)
            if is_training_content(content):
                return content

    def content(self, split: Split, rng: np.random.Generator) -> Content:
        """Return a random content for a split of the evaluation."""
        if split == "pairs":
            return self._held_out_pair(rng)
        if split == "colours":
            return self._held_out_colour(rng)
        while True:
            content = self.training_content(rng)
            if split in ("seen", "phrasings") or self._can_reword(content, split):
                return content

    def thing(self, name: str) -> Thing | None:
        """Return the object of this name, None for shapes."""
        return next((thing for thing in self.things if thing.name == name), None)

    def _can_reword(self, content: Content, split: Split) -> bool:
        things = [self.thing(item.name) for item in content.items]
        if split == "synonyms":
            return all(thing is not None and thing.synonyms for thing in things)
        return (
            content.count == 1
            and content.size is None
            and all(thing is not None and thing.held_out_descriptions for thing in things)
        )

    def _any_content(self, rng: np.random.Generator) -> Content:
        background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < _BACKGROUND_SHARE else None
        kind = rng.random()
        if kind < 0.6:
            first = self._item(rng)
            second = self._item(rng)
            while second == first:
                second = self._item(rng)
            relation = RELATIONS[int(rng.integers(4))]
            return Content(items=(first, second), relation=relation, background=background)  # type: ignore[arg-type]
        if kind < 0.8:
            return Content(items=(self._item(rng),), count=int(rng.integers(2, 5)), background=background)
        size = str(rng.choice(list(SIZE_WORDS))) if rng.random() < _SIZE_SHARE else None
        return Content(items=(self._item(rng),), size=size, background=background)

    def _item(self, rng: np.random.Generator) -> Item:
        if rng.random() < _SHAPE_SHARE:
            return Item(name=str(rng.choice(SHAPES)), colour=str(rng.choice(list(SHAPE_COLOURS))))
        return Item(name=self.things[int(rng.integers(len(self.things)))].name)

    def _held_out_pair(self, rng: np.random.Generator) -> Content:
        while True:
            content = self._any_content(rng)
            names = [item.name for item in content.items if item.colour is None]
            if len(names) == 2 and is_held_out_pair(*names):
                return content

    def _held_out_colour(self, rng: np.random.Generator) -> Content:
        while True:
            content = self._any_content(rng)
            shapes = [item for item in content.items if item.colour is not None]
            names = [item.name for item in content.items if item.colour is None]
            if any(is_held_out_colour(item.name, item.colour or "") for item in shapes) and not (
                len(names) == 2 and is_held_out_pair(*names)
            ):
                return content


def is_training_content(content: Content) -> bool:
    """Return whether training may show this content: no held-out pair or colour of a shape, two different items."""
    if any(item.colour is not None and is_held_out_colour(item.name, item.colour) for item in content.items):
        return False
    if len(content.items) == 2 and content.items[0] == content.items[1]:
        return False
    names = [item.name for item in content.items if item.colour is None]
    return not (len(names) == 2 and is_held_out_pair(*names))
