"""Training scenes, held-out scenes, and the prompts of every split of the evaluation."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2s
from itertools import combinations
from typing import Literal, get_args

from llmdiff.errors import LLMDiffError
from llmdiff.world.captions import LONG_WORDS, Caption, caption
from llmdiff.world.expected import Expected
from llmdiff.world.scenes import Scene, World, any_scene, laid_out, portrait
from llmdiff.world.things import COLOURS, all_things
from llmdiff.world.voices import SPLIT_VOICES, VOICES, Wording
from llmdiff.world.words import word_count

Split = Literal[
    "seen", "pairs", "colours", "counts", "forms", "synonyms", "descriptions", "actions", "long", "negation",
    "styles",
]  # fmt: skip
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_MEANINGS: dict[Split, str] = {
    "seen": "contents, sentence forms and words of the training captions, in new combinations",
    "pairs": "two things that no training scene shows together",
    "colours": "two coloured things, one in a colour that no training scene gives it",
    "counts": "a number of things of a kind that no training scene shows",
    "forms": "sentence forms that no training caption has",
    "synonyms": "names that no training caption uses (automobile for car)",
    "descriptions": "descriptions that no training caption uses (the fruit that keeps the doctor away)",
    "actions": "people doing something, in words that no training caption uses (working out at the gym)",
    "long": "three to five things, each in its place, in more than 77 tokens",
    "negation": "what must not be there, in sentence forms that no training caption has",
    "styles": "a thing in a style in which no training scene shows it",
}
_PAIR_SHARE, _COUNT_SHARE, _STYLE_SHARE, _COLOURS_EACH = 0.05, 0.12, 0.12, 2
# In every world that has scenes of the rarest split, they are one of 180.
_MOST_TRIES = 10_000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of the evaluation: its text, its requirements, and a scene that meets them."""

    split: Split
    text: str
    expected: Expected
    scene: Scene


@lru_cache(maxsize=2**18)
def is_held_out_pair(first: str, second: str) -> bool:
    """Return whether these two things never occur together in training (symmetric; determined by a hash)."""
    return first != second and _drawn("pair", *sorted((first, second))) < _PAIR_SHARE


@lru_cache
def is_held_out_colour(name: str, colour: str) -> bool:
    """Return whether this thing never has this colour in training: two of eight colours, except its natural one."""
    own = all_things()[name].own_colour
    ranked = sorted((_drawn("colour", name, other), other) for other in COLOURS if other != own)
    return colour in [other for _, other in ranked[:_COLOURS_EACH]]


@lru_cache(maxsize=2**14)
def is_held_out_count(name: str, count: int) -> bool:
    """Return whether training never shows this many of these things."""
    return count > 1 and _drawn("count", name, str(count)) < _COUNT_SHARE


@lru_cache(maxsize=2**13)
def is_held_out_style(name: str, style: str) -> bool:
    """Return whether training never shows this thing in this style; all things are shown in flat colour."""
    return style != "flat" and _drawn("style", name, style) < _STYLE_SHARE


def held_out_parts(scene: Scene) -> set[Split]:
    """Return the kinds of held-out contents in a scene; training scenes have none."""
    found: set[Split] = set()
    if any(is_held_out_style(placed.name, scene.style) for placed in scene.things):
        found.add("styles")
    if any(placed.colour and is_held_out_colour(placed.name, placed.colour) for placed in scene.things):
        found.add("colours")
    totals = {
        placed.name: sum(other.name == placed.name for other in scene.things) for placed in scene.things
    }
    if any(is_held_out_count(name, count) for name, count in totals.items()):
        found.add("counts")
    if any(is_held_out_pair(first, second) for first, second in combinations(totals, 2)):
        found.add("pairs")
    return found


def sample_scene(seed: int, index: int, world: World = World()) -> Scene:  # noqa: B008 (frozen)
    """Return the training scene of this seed and index, the same on every machine."""
    rng = random.Random(f"scene {seed} {index}")
    while True:
        scene = any_scene(world, rng)
        if not held_out_parts(scene):
            return laid_out(scene, rng)


def sample_portrait(seed: int, index: int, world: World = World()) -> Scene:  # noqa: B008 (frozen)
    """Return the training portrait of this seed and index: one thing that fills a picture of a quarter of the area."""
    rng = random.Random(f"portrait {seed} {index}")
    while True:
        scene = portrait(world, rng)
        if not held_out_parts(scene):
            return scene


def training_caption(scene: Scene, seed: int, index: int, wording: Wording = "rich") -> Caption:
    """Return a training caption of a scene; different indices give different captions."""
    return caption(scene, VOICES[wording], random.Random(f"caption {wording} {seed} {index}"))


def prompts(split: Split, count: int = 100, *, seed: int = 0, world: World = World()) -> list[Prompt]:  # noqa: B008
    """Return the prompts of a split, without duplicates."""
    found: dict[str, Prompt] = {}
    index = 0
    while len(found) < count:
        rng = random.Random(f"split {split} {seed} {index}")
        index += 1
        scene = split_scene(split, world, rng)
        made = caption(scene, SPLIT_VOICES[split], rng)
        if split == "long" and word_count(made.text) <= LONG_WORDS:
            continue
        found.setdefault(made.text, Prompt(split=split, text=made.text, expected=made.expected, scene=scene))
    return list(found.values())


def split_scene(split: Split, world: World, rng: random.Random) -> Scene:
    """Return a scene for a split, with its held-out contents and without those of other splits.

    Raises:
        LLMDiffError: this world has no such scene; a world of one style has none of the split `styles`.
    """
    wanted = {split} if split in ("pairs", "colours", "counts", "styles") else set()
    for _ in range(_MOST_TRIES):
        scene = any_scene(world, rng)
        if held_out_parts(scene) == wanted and _SUITS.get(split, _few_things)(scene):
            kept = scene if split == "negation" else replace(scene, absent=())
            return laid_out(kept, rng)
    raise LLMDiffError(f"split {split}: {world} has no scenes for it; use a world of more things or styles")


def _few_things(scene: Scene) -> bool:
    return scene.relation != "spots"


def _two_colours(scene: Scene) -> bool:
    """Return whether the scene has two things of different colours in a relation."""
    colours = {placed.colour for placed in scene.things}
    return len(scene.things) == 2 and len(colours) == 2 and None not in colours


def _can_describe(scene: Scene) -> bool:
    return _few_things(scene) and all(
        count == 1
        and placed.thing.held_out_description
        and not (placed.colour or placed.size or placed.upside_down)
        for placed, count in scene.groups
    )


def _has_synonyms(scene: Scene) -> bool:
    return _few_things(scene) and all(
        not placed.thing.is_action and any(noun.plural or count == 1 for noun in placed.thing.synonyms)
        for placed, count in scene.groups
    )


_SUITS: dict[Split, Callable[[Scene], bool]] = {
    "pairs": lambda scene: len(scene.groups) == 2,
    "colours": _two_colours,
    "synonyms": _has_synonyms,
    "descriptions": _can_describe,
    "actions": lambda scene: _few_things(scene) and any(placed.thing.is_action for placed in scene.things),
    "long": lambda scene: scene.relation == "spots",
    "negation": lambda scene: _few_things(scene) and bool(scene.absent),
}


def _drawn(*words: str) -> float:
    return int.from_bytes(blake2s("|".join(words).encode(), digest_size=8).digest(), "big") / 2**64
