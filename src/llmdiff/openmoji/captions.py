"""Captions of scenes: sentence forms and words that training uses, and those held out for the evaluation."""

from dataclasses import dataclass

import numpy as np

from llmdiff.openmoji.contents import Split, World
from llmdiff.openmoji.scenes import Content, Item
from llmdiff.openmoji.world import COUNT_WORDS, OPPOSITE, SIZE_WORDS

_SINGLE = (
    "{a}", "a picture of {a}", "a photo of {a}", "an emoji of {a}", "there is {a}", "an image that shows {a}",
    "a drawing of {a}", "just {a}", "{a} in the middle", "one can see {a}",
)  # fmt: skip
_COUNT = (
    "{a}", "a picture of {a}", "there are {a}", "a group of {a}", "{a} together", "an image with {a}",
    "exactly {a}", "a drawing of {a}",
)  # fmt: skip
_LEFT = (
    "{a} to the left of {b}", "{a} left of {b}", "{a} on the left and {b} on the right",
    "on the left {a}, on the right {b}", "{b} to the right of {a}", "{b} with {a} on its left side",
    "there is {a} on the left of {b}", "{b} on the right, {a} on the left", "{b} right of {a}",
    "the left side shows {a}, the right side {b}", "{a} is left of {b}", "{a} with {b} on its right side",
)  # fmt: skip
_ABOVE = (
    "{a} above {b}", "{a} on top of {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}",
    "at the top {a}, at the bottom {b}", "{a} at the top and {b} at the bottom", "{b} with {a} above it",
    "{a} is above {b}", "{b} at the bottom, {a} at the top", "there is {a} above {b}", "{a} with {b} below it",
)  # fmt: skip
_PREFIXES = ("a picture of ", "a photo of ", "an image of ", "a drawing of ")
_BACKGROUND = (
    "{x} on a {c} background", "{x} with a {c} background", "{x}, {c} background", "{x} in front of a {c} background",
    "on a {c} background, {x}", "{c} background, {x}",
)  # fmt: skip

_SINGLE_HELD_OUT = (
    "what you see here is {a}", "somebody painted {a}", "please draw {a} for me", "nothing but {a}",
    "I would like to see {a}", "here we have {a}",
)  # fmt: skip
_COUNT_HELD_OUT = (
    "what you see here are {a}", "please draw {a} for me", "I would like to see {a}", "here we have {a}",
    "nothing but {a}",
)  # fmt: skip
_LEFT_HELD_OUT = (
    "left of {b} there is {a}", "{a} stands at the left hand of {b}", "looking from left to right: {a}, then {b}",
    "{b} has {a} as its left neighbor", "in the left half {a}, in the right half {b}",
    "to the right of {a} you can find {b}",
)  # fmt: skip
_ABOVE_HELD_OUT = (
    "above {b} there is {a}", "{a} hovers higher than {b}", "{b} sits beneath {a}",
    "looking from top to bottom: {a}, then {b}", "in the upper half {a}, in the lower half {b}",
    "underneath {a} there is {b}",
)  # fmt: skip
_BACKGROUND_HELD_OUT = (
    "{x}, and the backdrop is {c}", "{x} against a {c} wall", "{x}, everything behind it is {c}",
    "the picture is {c} and shows {x}",
)  # fmt: skip
_ALTERNATIVE_NAME_SHARE, _DESCRIPTION_SHARE, _PREFIX_SHARE = 0.4, 0.12, 0.3
_IRREGULAR_PLURALS = {"aircraft": "aircraft", "spacecraft": "spacecraft", "swine": "swine", "fungus": "fungi"}


def training_template_count() -> int:
    """How many sentence forms training captions are made of."""
    return sum(map(len, (_SINGLE, _COUNT, _LEFT, _ABOVE, _BACKGROUND)))


@dataclass(frozen=True, kw_only=True)
class _Words:
    """How items may be called: which list of words of a thing is used."""

    split: Split
    described: int | None = None  # index of the item that is described rather than named


def caption(content: Content, world: World, rng: np.random.Generator, split: Split = "seen") -> str:
    """A sentence that asks for `content`, in the words and forms of a split; `seen` is what training uses."""
    held_out_form = split == "phrasings"
    described = int(rng.integers(len(content.items))) if split == "indirect" else None
    words = _Words(split=split, described=described)
    if content.relation is not None:
        text = _pair(content, world, words, rng, held_out_form)
    elif content.count > 1:
        forms: tuple[str, ...] = _COUNT_HELD_OUT if held_out_form else _COUNT
        number = (
            str(content.count) if rng.random() < 0.25 and not held_out_form else COUNT_WORDS[content.count]
        )
        text = _pick(forms, rng).format(
            a=f"{number} {_plural(_name(content.items[0], 0, world, words, rng))}"
        )
    else:
        forms = _SINGLE_HELD_OUT if held_out_form else _SINGLE
        size = _pick(SIZE_WORDS[content.size], rng) if content.size else None
        text = _pick(forms, rng).format(a=_phrase(content.items[0], 0, world, words, rng, size=size))
    if content.background is None:
        return text
    forms = _BACKGROUND_HELD_OUT if held_out_form else _BACKGROUND
    return _pick(forms, rng).format(x=text, c=content.background)


def _pair(
    content: Content, world: World, words: _Words, rng: np.random.Generator, held_out_form: bool
) -> str:
    first, second = (_phrase(item, i, world, words, rng) for i, item in enumerate(content.items))
    relation: str = content.relation or "left"
    if relation in ("right", "below"):  # the forms say left and above: a right of b is b left of a
        first, second, relation = second, first, OPPOSITE[relation]
    if relation == "left":
        forms = _LEFT_HELD_OUT if held_out_form else _LEFT
    else:
        forms = _ABOVE_HELD_OUT if held_out_form else _ABOVE
    form = _pick(forms, rng)
    if not held_out_form and form.startswith("{") and rng.random() < _PREFIX_SHARE:
        form = _pick(_PREFIXES, rng) + form
    return form.format(a=first, b=second)


def _phrase(
    item: Item, index: int, world: World, words: _Words, rng: np.random.Generator, *, size: str | None = None
) -> str:
    thing = world.thing(item.name)
    if thing is not None and size is None:
        if words.described == index:
            return _pick(thing.held_out_descriptions, rng)
        if words.split in ("seen", "pairs") and thing.descriptions and rng.random() < _DESCRIPTION_SHARE:
            return _pick(thing.descriptions, rng)
    noun = _name(item, index, world, words, rng)
    if size is not None:
        noun = f"{size} {noun}"
    article = "an" if noun[0] in "aeiou" and not noun.startswith("uni") else "a"
    return f"{article} {noun}"


def _name(item: Item, index: int, world: World, words: _Words, rng: np.random.Generator) -> str:
    if item.colour is not None:
        return f"{item.colour} {item.name}"
    thing = world.thing(item.name)
    assert thing is not None, f"{item.name} is not in a world of {world.objects} objects"
    if words.split == "synonyms" and thing.synonyms:
        return _pick(thing.synonyms, rng)
    if len(thing.names) > 1 and rng.random() < _ALTERNATIVE_NAME_SHARE:
        return _pick(thing.names[1:], rng)
    return thing.name


def _plural(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
