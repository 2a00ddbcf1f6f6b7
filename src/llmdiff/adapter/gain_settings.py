"""Gains of blocks and scales of layers that are chosen while drawing: parsed, checked and resolved."""

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from llmdiff.adapter.family import Family
from llmdiff.checks.bounds import BLOCK_GAIN, SCALE, short
from llmdiff.errors import ConfigError

# A block's number, or the first and the last of a range.
_BLOCKS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def parse_block_gains(text: str) -> dict[int, float]:
    """Return the factors in a text like "0-9=0.5,20=2", by block.

    Raises:
        ConfigError: the text has another form, or a factor is out of range.
    """
    gains: dict[int, float] = {}
    for blocks, value in _pairs("block_gains", text, 'as in "0-9=0.5,20=2"'):
        match = _BLOCKS.fullmatch(blocks)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"block_gains has the blocks {short(blocks)}, expected a number or a range: 3, or 0-9"
            )
        gains |= dict.fromkeys(range(int(match[1]), int(match[2] or match[1]) + 1), value)
    check_block_gains(gains)
    return gains


def parse_layer_scale(text: str) -> dict[str, float]:
    """Return the scales in a text like "down_blocks.*=0.5,mid_block.*=1", by pattern.

    Raises:
        ConfigError: the text has another form, or a scale is out of range.
    """
    scales = dict(_pairs("layer_scale", text, 'as in "down_blocks.*=0.5"'))
    check_layer_scale(scales)
    return scales


def _pairs(name: str, text: str, form: str) -> Iterator[tuple[str, float]]:
    for part in text.split(","):
        key, equals, value = part.strip().rpartition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not key:
            raise ConfigError(f"{name} has {short(part)}, expected what it is for and a number, {form}")
        yield key, number


def check_block_gains(gains: Mapping[int, float]) -> None:
    """Raise a ConfigError unless the keys are blocks' numbers and the factors are in range."""
    for block, gain in gains.items():
        if not isinstance(block, int) or isinstance(block, bool) or block < 0:
            raise ConfigError(f"block_gains has the block {short(block)}, expected its number, from 0")
        BLOCK_GAIN.check(f"block_gains[{block}]", gain)


def check_layer_scale(scales: Mapping[str, float]) -> None:
    """Raise a ConfigError unless the keys are texts and the scales are in range."""
    for pattern, scale in scales.items():
        if not isinstance(pattern, str):
            raise ConfigError(f"layer_scale has the layers {short(pattern)}, expected a name with wildcards")
        SCALE.check(f"layer_scale[{short(pattern)}]", scale)


def check_blocks(gains: Mapping[int, float], num_blocks: int) -> None:
    """Raise a ConfigError unless the LLM has these blocks."""
    if gains and max(gains) >= num_blocks:
        raise ConfigError(
            f"block_gains has the block {max(gains)}, expected 0 to {num_blocks - 1}: the LLM has {num_blocks} blocks"
        )


def check_layers_of(scales: Mapping[str, float], family: Family, layers: Collection[str]) -> None:
    """Raise a ConfigError unless layers of this family can have own scales and every pattern names one."""
    if scales and (family.text_channel == "joint" or family.mixing == "prediction"):
        raise ConfigError(
            f"layer_scale is given, but the layers of {family.title} share one text with the picture: use scale, or "
            "a pipeline with cross-attention"
        )
    for pattern in scales:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ConfigError(
                f"layer_scale has {short(pattern)}, which no attention layer is named that reads the text; expected "
                f"one of {', '.join(layers)}, or a pattern as in 'mid_block.*'"
            )


def scale_of_layer(name: str, scales: Mapping[str, float], default: float) -> float:
    """Return the scale of a layer: that of the last pattern which matches its name, else the default."""
    return [default, *(scale for pattern, scale in scales.items() if fnmatchcase(name, pattern))][-1]
