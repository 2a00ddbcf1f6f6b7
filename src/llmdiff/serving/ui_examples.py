"""Example prompts of every kind, and the words of the embedded default's world."""

from collections.abc import Mapping, Sequence

from llmdiff.adapter.base_pipeline import EMBEDDED_NAME

# Drawn when the page opens.
OPENING, OPENING_SEED = "a spacecraft above a fortress on a blue background", 0

# With words of the embedded default's world; each group tests one ability.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "New words (in no training caption)": (OPENING, "a grizzly to the right of a two-wheeler"),
    "Things that are described, not named": (
        "the berry that is eaten with cream at Wimbledon, on a pink background",
        "the thing that Ringo Starr played, above the thing that Mary Poppins flies with",
    ),
    "People doing something, in new words": ("a woman swaying to the music to the left of a lion",),
    "Long descriptions": (
        "In the top left corner there is a house. The top right corner shows a woman who is juggling balls. A green "
        "square can be seen in the bottom right corner. As for the bottom left corner, it shows a turtle. Another part "
        "of the picture, the middle, shows a crescent moon. The mood is calm, and the light is the same everywhere.",
    ),
    "Colours": ("a pink umbrella above a green circle",),
    "Numbers": ("two tents and three balloons together on a gray background",),
    "New sentence forms (in no training caption)": ("In the left half a plane, in the right half a cat.",),
    "What must not be there": ("A sailboat between the moon and a bicycle. Skip a key.",),
    "Styles": ("a black-and-white drawing of a castle to the right of a horse",),
}


def own_world(adapter: str) -> bool:
    """Return whether an adapter is the embedded default's, which draws the examples."""
    return adapter == EMBEDDED_NAME


def known_words() -> Mapping[str, Sequence[str]]:
    """Return words that the embedded default's captions use, by group."""
    from llmdiff.world.layouts import OPPOSITE, SPOTS
    from llmdiff.world.packaged import packaged_world
    from llmdiff.world.places import places
    from llmdiff.world.things import COLOURS

    world = packaged_world()
    return {
        "Things": [thing.name for thing in world.things if not thing.is_action],
        "Actions": [thing.name for thing in world.things if thing.is_action],
        "Colours": list(COLOURS),
        "Where": [*OPPOSITE, "between", *SPOTS],
        "Places": list(places()),
        "Styles": list(world.styles),
    }
