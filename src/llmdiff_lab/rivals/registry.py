"""The rivals of `rivals.yaml` by name."""

from dataclasses import dataclass

import torch

from llmdiff.errors import ConfigError
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.rivals.readings import READINGS, RivalInputs, RivalReading
from llmdiff_lab.rivals.rows import RivalRow, rival_rows


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One rival: its name, its row, and the reading that makes it."""

    name: str
    row: RivalRow
    reading: RivalReading


def create(name: str, parts: RivalInputs) -> Conditioning:
    """Return an untrained rival by name; torch's global random state does not change.

    Raises:
        ConfigError: the name is unknown, or `parts` lacks the reader it needs.
    """
    found = rival(name)
    needs = found.reading.needs
    if needs is not None and getattr(parts, needs) is None:
        raise ConfigError(f"rival {name!r} needs {needs}, which is None: load one and pass it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        return found.reading.make(parts, found.row)


def rival(name: str) -> Rival:
    """Return the rival of this name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in RIVALS:
        raise ConfigError(f"rival is {name!r}, expected one of {', '.join(RIVALS)}")
    return RIVALS[name]


def rival_of(name: str, row: RivalRow) -> Rival:
    """Return the rival of a row.

    Raises:
        ConfigError: its reading is unknown or does not use one of its fields.
    """
    if row.reading not in READINGS:
        raise ConfigError(
            f"rivals.yaml, {name}: reading is {row.reading!r}, expected one of {', '.join(READINGS)}"
        )
    reading = READINGS[row.reading]
    if unused := sorted(row.chosen - reading.takes):
        raise ConfigError(
            f"rivals.yaml, {name}: the reading {row.reading!r} does not use {', '.join(unused)}: leave it out"
        )
    return Rival(name=name, row=row, reading=reading)


RIVALS: dict[str, Rival] = {name: rival_of(name, row) for name, row in rival_rows().items()}
