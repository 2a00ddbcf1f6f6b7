"""Captions of scenes: in the words that training uses, in other words, or in words held out for the evaluation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmdiff.openmoji import more_words
from llmdiff.openmoji.contents import Split, World
from llmdiff.openmoji.scenes import Content, Item
from llmdiff.openmoji.sentence_forms import HELD_OUT, PREFIXES, REWORDED, TRAINING, Forms
from llmdiff.openmoji.world import COUNT_WORDS, OPPOSITE, SIZE_WORDS, Thing

Wording = Literal["training", "plain", "reworded"]
"""How a caption of training speaks.

training: what the base reads in training: several names, now and then a description.
plain: the same sentence forms, each thing by its first name.
reworded: also in the forms of `sentence_forms.REWORDED` and the words of `more_words`, which the base never reads.
"""

_ALTERNATIVE_NAME_SHARE, _DESCRIPTION_SHARE, _PREFIX_SHARE = 0.4, 0.12, 0.3
_REWORDED_DESCRIPTION_SHARE, _COLOUR_BEHIND_SHARE, _COLOUR_WORD_SHARE = 0.25, 0.3, 0.2
_IRREGULAR_PLURALS = {"aircraft": "aircraft", "spacecraft": "spacecraft", "swine": "swine", "fungus": "fungi"}


@dataclass(frozen=True, kw_only=True)
class _Words:
    """How items may be called: which list of words of a thing is used."""

    split: Split
    wording: Wording
    described: int | None = None  # index of the item that is described rather than named

    @property
    def forms(self) -> Forms:
        if self.split == "phrasings":
            return HELD_OUT
        return TRAINING + REWORDED if self.wording == "reworded" else TRAINING

    def names(self, thing: Thing) -> tuple[str, ...]:
        if self.split == "synonyms" and thing.synonyms:
            return thing.synonyms
        if self.wording == "plain":
            return thing.names[:1]
        if self.wording == "reworded":
            return thing.names + more_words.NAMES.get(thing.name, ())
        return thing.names

    def descriptions(self, thing: Thing) -> tuple[str, ...]:
        if self.split not in ("seen", "pairs") or self.wording == "plain":
            return ()
        if self.wording == "reworded":
            return thing.descriptions + more_words.DESCRIPTIONS.get(thing.name, ())
        return thing.descriptions

    @property
    def description_share(self) -> float:
        return _REWORDED_DESCRIPTION_SHARE if self.wording == "reworded" else _DESCRIPTION_SHARE


@dataclass(frozen=True)
class _Noun:
    """What an item is called: the noun that takes article, size and plural, and what stands behind it."""

    noun: str
    behind: str = ""

    def with_article(self, size: str | None = None) -> str:
        noun = self.noun if size is None else f"{size} {self.noun}"
        article = "an" if noun[0] in "aeiou" and not noun.startswith("uni") else "a"
        return f"{article} {noun}{self.behind}"

    def plural(self) -> str:
        head, joint, rest = self.noun.partition(" with ")
        return f"{_plural(head)}{joint}{rest}{self.behind}"


def caption(
    content: Content,
    world: World,
    rng: np.random.Generator,
    split: Split = "seen",
    *,
    wording: Wording = "training",
) -> str:
    """Return a caption of `content` in the words and forms of a split; `seen` is the split of training."""
    described = int(rng.integers(len(content.items))) if split == "indirect" else None
    words = _Words(split=split, wording=wording, described=described)
    if content.relation is not None:
        text = _pair(content, world, words, rng)
    elif content.count > 1:
        digits = rng.random() < 0.25 and split != "phrasings"
        number = str(content.count) if digits else COUNT_WORDS[content.count]
        text = _pick(words.forms.count, rng).format(
            a=f"{number} {_noun(content.items[0], world, words, rng).plural()}"
        )
    else:
        size = _pick(SIZE_WORDS[content.size], rng) if content.size else None
        text = _pick(words.forms.single, rng).format(
            a=_phrase(content.items[0], 0, world, words, rng, size=size)
        )
    if content.background is None:
        return text
    return _pick(words.forms.background, rng).format(x=text, c=content.background)


def _pair(content: Content, world: World, words: _Words, rng: np.random.Generator) -> str:
    first, second = (_phrase(item, i, world, words, rng) for i, item in enumerate(content.items))
    relation: str = content.relation or "left"
    if relation in ("right", "below"):  # the forms say left and above: a right of b is b left of a
        first, second, relation = second, first, OPPOSITE[relation]
    form = _pick(words.forms.left if relation == "left" else words.forms.above, rng)
    if words.split != "phrasings" and form.startswith("{") and rng.random() < _PREFIX_SHARE:
        form = _pick(PREFIXES, rng) + form
    return form.format(a=first, b=second)


def _phrase(
    item: Item, index: int, world: World, words: _Words, rng: np.random.Generator, *, size: str | None = None
) -> str:
    thing = world.thing(item.name)
    if thing is not None and size is None:
        if words.described == index:
            return _pick(thing.held_out_descriptions, rng)
        descriptions = words.descriptions(thing)
        if descriptions and rng.random() < words.description_share:
            return _pick(descriptions, rng)
    return _noun(item, world, words, rng).with_article(size)


def _noun(item: Item, world: World, words: _Words, rng: np.random.Generator) -> _Noun:
    if item.colour is not None:
        return _coloured(item.name, item.colour, words, rng)
    thing = world.thing(item.name)
    assert thing is not None, f"{item.name} is not in a world of {world.objects} objects"
    names = words.names(thing)
    if names is thing.synonyms:
        return _Noun(_pick(names, rng))
    if len(names) > 1 and rng.random() < _ALTERNATIVE_NAME_SHARE:
        return _Noun(_pick(names[1:], rng))
    return _Noun(names[0])


def _coloured(shape: str, colour: str, words: _Words, rng: np.random.Generator) -> _Noun:
    if words.wording != "reworded":
        return _Noun(f"{colour} {shape}")
    if rng.random() < _COLOUR_WORD_SHARE:
        colour = _pick(more_words.COLOUR_WORDS[colour], rng)
    if rng.random() < _COLOUR_WORD_SHARE:
        shape = _pick(more_words.SHAPE_WORDS[shape], rng)
    if rng.random() < _COLOUR_BEHIND_SHARE:
        return _Noun(shape, _pick((" in {c}", " coloured {c}", " painted {c}"), rng).format(c=colour))
    return _Noun(f"{colour} {shape}")


def _plural(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
