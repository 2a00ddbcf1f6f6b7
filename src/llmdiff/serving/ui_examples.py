"""Example prompts that are hard for the base's text encoder, and the words of the embedded default's world."""

from collections.abc import Mapping, Sequence

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME

# Drawn when the page opens.
OPENING, OPENING_SEED = "what takes off from an airport, above what a forest is made of", 0

# With words of the embedded default's world; each group tests one ability.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "Counting": ("three bees", "four mushrooms on a green background", "exactly two penguins"),
    "Binding: which colour is whose": (
        "a red star to the left of a blue heart",
        "a yellow circle above a purple square",
    ),
    "Relations: what is where": (
        "a cat to the left of a car",
        "a house below a plane",
        "an apple with a crown above it",
    ),
    "Long sentences": (
        "I would like to see a picture with a pink background, and in its left half there should be a frog, while "
        "in its right half, next to the frog, there should be a turtle",
        "looking from top to bottom: first a ghost, and then, underneath the ghost, a house, and everything behind "
        "the two of them is purple",
    ),
    "Indirect: what is meant, not named": (
        "the fruit that keeps the doctor away",
        "the pet that catches mice to the left of what Santa brings",
        "what takes off from an airport, above what a forest is made of",
    ),
}


def own_world(adapter: str) -> bool:
    """Return whether an adapter is the embedded default's, which draws the examples."""
    return adapter == EMBEDDED_NAME


def known_words() -> Mapping[str, Sequence[str]]:
    """Return words that the embedded default's captions use, by group."""
    from llmdiff.openmoji.contents import World
    from llmdiff.openmoji.world import RELATIONS, SHAPE_COLOURS, SHAPES

    return {
        "Things": [thing.names[0] for thing in World().things],
        "Shapes": SHAPES,
        "Colours": list(SHAPE_COLOURS),
        "Where": list(RELATIONS),
    }
