"""Example prompts that are hard for the base's text encoder, and the words of the embedded default's world."""

from collections.abc import Mapping, Sequence

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME

# Drawn when the page opens.
OPENING, OPENING_SEED = "what takes off from an airport, above what a forest is made of", 0

# With words of the embedded default's world; each group tests one ability. From the same seeds the LLM draws them
# exactly right, and the base's text encoder does not.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "Things that are described, not named": (
        OPENING,
        "the animal that croaks by the pond below what sits on the head of a queen",
        "what astronauts travel in, above the place with a roof, walls and a front door",
        "the reptile that hides in its shell, on a pink background",
    ),
    "Long sentences": (
        "I would like to see a picture with a pink background, and in its left half there should be a frog, while "
        "in its right half, next to the frog, there should be a turtle",
        "looking from top to bottom: first a ghost, and then, underneath the ghost, a house, and everything behind "
        "the two of them is purple",
    ),
    "New sentence forms (in no training caption)": ("looking from left to right: a mushroom, then a house",),
    "New words (in no training caption)": ("an automobile to the right of a tortoise",),
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
