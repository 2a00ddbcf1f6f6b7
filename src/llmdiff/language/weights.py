"""Prompt weights: `a (red:1.3) car` strengthens "red", `a (red:0.5) car` weakens it."""

import re
from dataclasses import dataclass

from llmdiff.errors import PromptError

MAX_WEIGHT = 10.0

_ESCAPABLE = "()\\:"
_NUMBER = re.compile(r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\Z")
# A colon and its number take at most this many characters; anything longer is text.
_LONGEST_NUMBER = 24


@dataclass(frozen=True, kw_only=True)
class WeightedText:
    """A prompt without weight syntax, and the weight of each of its characters."""

    text: str
    weights: tuple[float, ...]

    @classmethod
    def plain(cls, text: str) -> "WeightedText":
        """Return a text with weight 1 throughout."""
        return cls(text=text, weights=(1.0,) * len(text))

    def of_span(self, start: int, end: int) -> float:
        """Return the mean weight of the characters from `start` to `end`, without blanks."""
        inside = [self.weights[i] for i in range(start, end) if not self.text[i].isspace()]
        inside = inside or list(self.weights[start:end])
        if not inside:
            return 1.0
        # Return equal weights directly: a sum would round.
        return inside[0] if len(set(inside)) == 1 else sum(inside) / len(inside)


def parse_weights(prompt: str) -> WeightedText:
    r"""Return the prompt's text and weights.

    `(text:1.3)` gives the text the weight 1.3. Groups nest and their weights multiply. Everything else is plain text,
    including brackets without a weight: `(text)`, `(text:soon)`, `[text]`. A backslash makes `(`, `)`, `:` or another
    backslash after it a plain character; before any other character it is a plain character itself.

    Raises:
        PromptError: a weight is negative or above 10.
    """
    chars: list[str] = []
    weights: list[float] = []
    # Characters that cannot be part of a group's number: escaped ones and those of an inner group.
    sealed: list[bool] = []
    open_groups: list[int] = []

    def add(char: str, *, escaped: bool = False) -> None:
        chars.append(char)
        weights.append(1.0)
        sealed.append(escaped)

    place = 0
    while place < len(prompt):
        char = prompt[place]
        place += 1
        if char == "\\" and prompt[place : place + 1] and prompt[place] in _ESCAPABLE:
            add(prompt[place], escaped=True)
            place += 1
            continue
        if char == ")" and open_groups:
            start = open_groups.pop()
            found = _number(chars, sealed, start)
            if found is not None:
                colon, weight = found
                del chars[colon:], weights[colon:], sealed[colon:]
                del chars[start], weights[start], sealed[start]
                for i in range(start, len(chars)):
                    weights[i] *= weight
                    sealed[i] = True
                continue
            for i in range(start, len(chars)):
                sealed[i] = True
        elif char == "(":
            open_groups.append(len(chars))
        add(char)
    return WeightedText(text="".join(chars), weights=tuple(weights))


def _number(chars: list[str], sealed: list[bool], start: int) -> tuple[int, float] | None:
    """Return the index of the colon and the weight of the group that starts at `start`; None if it has no weight."""
    first = len(chars)
    while first > start + 1 and len(chars) - first < _LONGEST_NUMBER and not sealed[first - 1]:
        first -= 1
    match = _NUMBER.search("".join(chars[first:]))
    if match is None:
        return None
    colon, weight = first + match.start(), float(match[1])
    if colon == start + 1:  # no text before the colon
        return None
    if not 0.0 <= weight <= MAX_WEIGHT:
        group = "".join(chars[start:])
        raise PromptError(
            f'weight {match[1]} in "{group})" is out of range, expected 0 to {MAX_WEIGHT:g}; if it is text, '
            rf'write "\{group}\)"'
        )
    return colon, weight
