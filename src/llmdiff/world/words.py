"""Articles, plurals and lists: the English that captions need."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_IRREGULAR = {
    "calf": "calves",
    "cattle": "cattle",
    "child": "children",
    "fungus": "fungi",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "thief": "thieves",
    "woman": "women",
}
# Words whose first vowel letter is spoken as a consonant.
_CONSONANT = ("eu", "one-", "ufo", "uk", "uni", "use", "ute")
_VOWEL = ("hour", "honest", "heir", "honour")
_SPELT_VOWEL = re.compile(r"^(?:[AEFHILMNORSX](?=[A-Z.]|$|-)|l\b|x-|m\b)")
_SPELT_CONSONANT = re.compile(r"^(?:U(?=[A-Z.])|E\.?U)")


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One name of a thing.

    `plural` is None if the noun is not countable (bread, scissors). `article` is that of the singular: a, an, the, or
    empty.
    """

    text: str
    plural: str | None
    article: str

    def singular(self, before: str = "", behind: str = "") -> str:
        """Return the noun with its article, adjectives `before` and further words `behind`."""
        words = f"{before}{self.text}"
        article = indefinite_article(words) if self.article in ("a", "an") else self.article
        return f"{article} {words}{behind}".strip()

    def several(self, count: int | str, before: str = "", behind: str = "") -> str:
        """Return the noun with a number before it."""
        if self.plural is None:
            raise ValueError(f"{self.text!r} has no plural")
        return f"{count} {before}{self.plural}{behind}"


def noun(text: str, plural: str = "") -> Noun:
    """Return a noun from a cell of the tables: "the sun" keeps its article; a plural "-" means not countable."""
    article, _, rest = text.partition(" ")
    if article != "the":
        article, rest = "a", text
    if plural == "-":
        return Noun(text=rest, plural=None, article="the" if article == "the" else "")
    return Noun(text=rest, plural=plural or plural_of(rest), article=article)


def indefinite_article(words: str) -> str:
    """Return "a" or "an", according to the pronunciation of these words."""
    if _SPELT_CONSONANT.match(words):
        return "a"
    if _SPELT_VOWEL.match(words):
        return "an"
    start = words.lower()
    if start.startswith(_VOWEL):
        return "an"
    return "an" if start[0] in "aeiou" and not start.startswith(_CONSONANT) else "a"


def plural_of(text: str) -> str:
    """Return the plural of a noun phrase: of its last word before "of", "with", "for", "in" or "that"."""
    found = re.search(r" (?:of|with|for|in|at|on|that|from|to|covering|asking|licking|who|without) ", text)
    head, rest = (text[: found.start()], text[found.start() :]) if found else (text, "")
    first, space, last = head.rpartition(" ")
    start, hyphen, ending = last.rpartition("-")
    return f"{first}{space}{start}{hyphen}{_plural_word(ending)}{rest}"


def joined(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(text: str) -> str:
    """Return the text with a capital letter and a full stop."""
    capital = text[0].upper() + text[1:]
    return capital if capital.endswith((".", "?", "!")) else f"{capital}."


def word_count(text: str) -> int:
    """Return the number of words and punctuation marks of a text, a lower bound of CLIP's number of tokens."""
    return len(re.findall(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]+", text))


def _plural_word(word: str) -> str:
    lower = word.lower()
    for ending, plural in _IRREGULAR.items():
        if lower == ending or (len(ending) > 3 and lower.endswith(ending)):
            return word[: len(word) - len(ending)] + plural
    if lower.endswith("man") and lower not in ("human", "german"):
        return f"{word[:-3]}men"
    if lower.endswith("y") and len(lower) > 1 and lower[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if lower.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"
