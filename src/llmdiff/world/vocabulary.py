"""Compare a prompt with the words of the world that a pipeline was trained on."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from llmdiff.world.forms import all_forms, style_phrases
from llmdiff.world.places import places
from llmdiff.world.scenes import World
from llmdiff.world.things import COLOURS, STYLES

_WORD = re.compile(r"[^\W\d_]+")
# Words in at least this many descriptions are function words: the, that, with.
_TOO_COMMON = 6


def unknown_prompt_notice(prompt: str, world: World) -> str | None:
    """Return a notice if no word of the prompt belongs to this world, else None.

    A name, a synonym, a colour or a place is enough, or two words of descriptions ("the pet that purrs").
    """
    words = _words([prompt])
    if words & known_names(world) or len(words & _described(world)) > 1:
        return None
    names = ", ".join(thing.name for thing in world.things[:4])
    return (
        f"no word of this prompt belongs to the world that this pipeline was trained on ({names}, ...), so the "
        "picture will show something else: `llmdiff world` lists what it knows"
    )


@lru_cache
def known_names(world: World) -> frozenset[str]:
    """Return the lower-case words that name things, actions, places or colours of this world."""
    names = [
        text
        for thing in world.things
        for noun in (*thing.names, *thing.synonyms)
        for text in (noun.text, noun.plural)
        if text
    ]
    settings = [
        phrase
        for place in places().values()
        for phrase in (*place.phrases, *place.rich_phrases, *place.held_out_phrases)
    ]
    alone = {
        name.lower() for name in names if " " not in name
    }  # "book", though forms speak of colouring books
    return frozenset(alone | (_words([*names, *settings, *COLOURS]) - _function_words()))


@lru_cache
def _described(world: World) -> frozenset[str]:
    """Return the words that occur in few descriptions."""
    texts = [text for thing in world.things for text in (thing.description, thing.held_out_description)]
    used = Counter(word for text in texts for word in _words([text]))
    return frozenset({word for word, count in used.items() if count < _TOO_COMMON} - _function_words())


@lru_cache
def _function_words() -> frozenset[str]:
    """Return the words of sentence forms and styles, which occur in any prompt."""
    tiers = ("plain", "rich", "held out")
    styles = [phrase for style in STYLES for phrase in style_phrases(style, tiers)]
    return frozenset(_words([*(form.text for form in all_forms() if form.kind != "distractor"), *styles]))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORD.findall(text.lower()) if len(word) > 1}
