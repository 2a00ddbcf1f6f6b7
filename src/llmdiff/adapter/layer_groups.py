"""Groups of a denoiser's attention layers that read the LLM's blocks with gains of their own."""

import re
from collections.abc import Collection

from llmdiff.errors import ConfigError

# Parts of names in the order in which a denoiser runs them; other names come first.
_ORDER = ("down", "mid", "up", "single")


def layer_groups(layers: Collection[str], groups: int) -> dict[str, int]:
    """Return the group of every attention layer, from 0, by the layer's module name.

    Layers are put in the order in which the denoiser runs them and cut into neighbours: the largest group is halved
    until there are enough, at the end of a stage (a U-Net's resolution, a transformer's kind of block) where a group
    spans several, else in its middle. One group for each layer is the finest.

    Raises:
        ConfigError: there are more groups than layers.
    """
    if not 1 <= groups <= len(layers):
        raise ConfigError(
            f"routing is {groups}, expected 1 to {len(layers)}, the number of the denoiser's attention layers that "
            "read the text"
        )
    cut = [sorted(layers, key=_depth)]
    while len(cut) < groups:
        spans = [len({_stage(name) for name in part}) > 1 for part in cut]
        # The largest group of several stages, else the largest; of equal ones the first.
        index = max(range(len(cut)), key=lambda i: (spans[i], len(cut[i]), -i))
        part = cut[index]
        places = list(range(1, len(part)))
        if spans[index]:
            places = [i for i in places if _stage(part[i - 1]) != _stage(part[i])]
        place = min(places, key=lambda i: abs(2 * i - len(part)))
        cut[index : index + 1] = [part[:place], part[place:]]
    return {name: group for group, part in enumerate(cut) for name in part}


def _depth(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Return a key that sorts layers by when they run; "blocks.10" comes after "blocks.2"."""
    rank = next((place for place, part in enumerate(_ORDER, 1) if name.startswith(part)), 0)
    return rank, [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _stage(name: str) -> str:
    """Return the stage of a layer: "down_blocks.1.attentions.0..." => "down_blocks.1", "blocks.3.attn" => "blocks"."""
    numbers = list(re.finditer(r"\.\d+(?=\.|$)", name))
    if not numbers:
        return name
    return name[: numbers[0].end() if len(numbers) > 1 else numbers[0].start()]
