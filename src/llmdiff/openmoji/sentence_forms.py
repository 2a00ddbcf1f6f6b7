"""Sentence forms of captions: those that training uses, those of reworded captions, those held out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Sentences for every kind of content: {a} and {b} are things, {x} a whole sentence, {c} a colour.

    Fields:
        left: {a} is left of {b}.
        above: {a} is above {b}.
        background: put around any of the others.
    """

    single: tuple[str, ...]
    count: tuple[str, ...]
    left: tuple[str, ...]
    above: tuple[str, ...]
    background: tuple[str, ...]

    def all(self) -> tuple[str, ...]:
        """Return all forms."""
        return self.single + self.count + self.left + self.above + self.background

    def __add__(self, other: "Forms") -> "Forms":
        return Forms(
            single=self.single + other.single,
            count=self.count + other.count,
            left=self.left + other.left,
            above=self.above + other.above,
            background=self.background + other.background,
        )


PREFIXES = ("a picture of ", "a photo of ", "an image of ", "a drawing of ")

# fmt: off
TRAINING = Forms(
    single=(
        "{a}", "a picture of {a}", "a photo of {a}", "an emoji of {a}", "there is {a}", "an image that shows {a}",
        "a drawing of {a}", "just {a}", "{a} in the middle", "one can see {a}",
    ),
    count=(
        "{a}", "a picture of {a}", "there are {a}", "a group of {a}", "{a} together", "an image with {a}",
        "exactly {a}", "a drawing of {a}",
    ),
    left=(
        "{a} to the left of {b}", "{a} left of {b}", "{a} on the left and {b} on the right",
        "on the left {a}, on the right {b}", "{b} to the right of {a}", "{b} with {a} on its left side",
        "there is {a} on the left of {b}", "{b} on the right, {a} on the left", "{b} right of {a}",
        "the left side shows {a}, the right side {b}", "{a} is left of {b}", "{a} with {b} on its right side",
    ),
    above=(
        "{a} above {b}", "{a} on top of {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}",
        "at the top {a}, at the bottom {b}", "{a} at the top and {b} at the bottom", "{b} with {a} above it",
        "{a} is above {b}", "{b} at the bottom, {a} at the top", "there is {a} above {b}", "{a} with {b} below it",
    ),
    background=(
        "{x} on a {c} background", "{x} with a {c} background", "{x}, {c} background",
        "{x} in front of a {c} background", "on a {c} background, {x}", "{c} background, {x}",
    ),
)
REWORDED = Forms(
    single=(
        "show me {a}", "{a} on its own", "a sketch with {a} in it", "could you paint {a}?", "the artist drew {a}",
        "this picture contains {a}", "{a}, that is all", "a close look at {a}",
    ),
    count=(
        "show me {a}", "the scene contains {a}", "a set of {a}", "could you paint {a}?", "{a} and no more",
        "this picture contains {a}",
    ),
    left=(
        "first {a}, then to its right {b}", "{a} sits on the left side of {b}", "show me {b} to the right of {a}",
        "the leftmost thing is {a}, the rightmost is {b}", "{b} is on the right, and {a} on the other side",
        "if you go from {a} to the right, you reach {b}", "put {a} on the left and {b} on the right",
        "a sketch with {a} left of {b}",
    ),
    above=(
        "{a} floats above {b}", "{b} is lower than {a}", "the topmost thing is {a}, the lowest is {b}",
        "{a} is high up, {b} is down below", "put {a} on top and {b} under it", "show me {b} below {a}",
        "first {a}, then below it {b}", "{b} at the foot of the picture, {a} at its head",
    ),
    background=(
        "{x}, painted on {c}", "{x}; the background is {c}", "{x} on {c} paper", "{x}, with {c} all around",
        "{x}, {c} behind it", "{x} before a plain {c} background",
    ),
)
HELD_OUT = Forms(
    single=(
        "what you see here is {a}", "somebody painted {a}", "please draw {a} for me", "nothing but {a}",
        "I would like to see {a}", "here we have {a}",
    ),
    count=(
        "what you see here are {a}", "please draw {a} for me", "I would like to see {a}", "here we have {a}",
        "nothing but {a}",
    ),
    left=(
        "left of {b} there is {a}", "{a} stands at the left hand of {b}", "looking from left to right: {a}, then {b}",
        "{b} has {a} as its left neighbor", "in the left half {a}, in the right half {b}",
        "to the right of {a} you can find {b}",
    ),
    above=(
        "above {b} there is {a}", "{a} hovers higher than {b}", "{b} sits beneath {a}",
        "looking from top to bottom: {a}, then {b}", "in the upper half {a}, in the lower half {b}",
        "underneath {a} there is {b}",
    ),
    background=(
        "{x}, and the backdrop is {c}", "{x} against a {c} wall", "{x}, everything behind it is {c}",
        "the picture is {c} and shows {x}",
    ),
)
# fmt: on
