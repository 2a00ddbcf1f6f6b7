"""Noun phrases of captions for one kind of thing in a scene."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llmdiff.world.scenes import Placed
from llmdiff.world.things import all_things
from llmdiff.world.voices import Voice
from llmdiff.world.words import COUNT_WORDS, Noun, indefinite_article

_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_UPSIDE_DOWN_BEHIND = (" upside down", " turned upside down", " hanging upside down")
_DIGIT_SHARE, _SAYS_WHO_SHARE = 0.2, 0.8


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A noun phrase; `says_who`: whether it distinguishes man and woman."""

    text: str
    is_plural: bool = False
    says_who: bool = False


def phrase(
    placed: Placed, count: int, voice: Voice, rng: random.Random, *, described: bool = False
) -> Phrase:
    """Return a noun phrase for `count` things of this kind; with `described`, the held-out description."""
    thing = placed.thing
    if thing.is_action:
        return _action_phrase(placed, voice, rng)
    is_plain = count == 1 and not (placed.colour or placed.size or placed.upside_down)
    if is_plain and described and thing.held_out_description:
        return Phrase(text=thing.held_out_description)
    if is_plain and thing.description and rng.random() < voice.description_share:
        return Phrase(text=thing.description)
    noun = _noun(placed, count, voice, rng)
    before, behind = _adjectives(placed, rng)
    if count > 1:
        number = str(count) if rng.random() < _DIGIT_SHARE else COUNT_WORDS[count]
        return Phrase(text=noun.several(number, before, behind), is_plural=True)
    # Nouns without a countable plural may be plurals themselves: grapes, scissors.
    is_plural = noun.plural is None and noun.text.endswith("s") and not noun.text.endswith(("as", "ss", "us"))
    return Phrase(text=noun.singular(before, behind), is_plural=is_plural)


def absent_phrases(names: Sequence[str]) -> tuple[str, str]:
    """Return absent things with their articles ("a cup or a dog") and for use after "no" ("cup and no dog")."""
    nouns = [all_things()[name].countable for name in names]
    found = [noun for noun in nouns if noun is not None]
    return " or ".join(noun.singular() for noun in found), " and no ".join(noun.text for noun in found)


def _noun(placed: Placed, count: int, voice: Voice, rng: random.Random) -> Noun:
    names = _fitting(placed.thing.names, placed, count)
    synonyms = _fitting(placed.thing.synonyms, placed, count)
    if voice.uses_synonyms and synonyms:
        return rng.choice(synonyms)
    if len(names) > 1 and rng.random() < voice.other_name_share:
        return rng.choice(names[1:])
    return names[0]


def _fitting(nouns: Sequence[Noun], placed: Placed, count: int) -> Sequence[Noun]:
    """Return the nouns that can follow a number or a size: not "two milk", preferably not "small milk"."""
    counted = [noun for noun in nouns if noun.plural is not None]
    return counted if count > 1 or (placed.size and counted) else nouns


def _adjectives(placed: Placed, rng: random.Random) -> tuple[str, str]:
    before, behind = "", ""
    if placed.size is not None:
        before += f"{rng.choice(_SIZE_WORDS[placed.size])} "
    if placed.upside_down:
        if rng.random() < 0.6:
            before += "upside-down "
        else:
            behind = rng.choice(_UPSIDE_DOWN_BEHIND)
    if placed.colour is not None:
        before += f"{placed.colour} "
    return before, behind


def _action_phrase(placed: Placed, voice: Voice, rng: random.Random) -> Phrase:
    thing = placed.thing
    says_who = placed.who is not None and rng.random() < _SAYS_WHO_SHARE
    doing = thing.names[0].text
    if voice.rewords_actions:
        doing = rng.choice(thing.synonyms).text
    elif len(thing.names) > 1 and rng.random() < voice.other_name_share:
        doing = rng.choice(thing.names[1:]).text
    noun = placed.who if says_who and placed.who else "person"
    size = f"{rng.choice(_SIZE_WORDS[placed.size])} " if placed.size else ""
    if thing.is_pair:
        several = {"man": "men", "woman": "women", "person": "people"}[noun]
        subject, verb = f"two {size}{several}", "are"
    else:
        subject, verb = f"{indefinite_article(size + noun)} {size}{noun}", "is"
    link = rng.choice((" ", " ", f" who {verb} "))
    return Phrase(text=f"{subject}{link}{doing}", is_plural=thing.is_pair, says_who=says_who)
