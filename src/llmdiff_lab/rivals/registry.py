"""The rivals of `rivals.yaml` by name."""

import torch

from llmdiff.errors import ConfigError
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.rivals.readings import READINGS, Reader, RivalInputs
from llmdiff_lab.rivals.rows import RivalRow, rival_rows


def create(name: str, parts: RivalInputs) -> Conditioning:
    """Return an untrained rival by name; torch's global random state does not change.

    Raises:
        ConfigError: the name is unknown, or `parts` lacks the reader it needs.
    """
    needs = reader_of(name)
    if needs is not None and getattr(parts, needs) is None:
        raise ConfigError(f"rival {name!r} needs {needs}, which is None: load one and pass it")
    row = RIVALS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        return READINGS[row.reading].make(parts, row)


def reader_of(name: str) -> Reader | None:
    """Return the name of the frozen reader that a rival needs.

    Raises:
        ConfigError: the rival's name is unknown.
    """
    if name not in RIVALS:
        raise ConfigError(f"rival is {name!r}, expected one of {', '.join(RIVALS)}")
    return READINGS[RIVALS[name].reading].needs


def checked(name: str, row: RivalRow) -> RivalRow:
    """Return the row of a rival after checking it.

    Raises:
        ConfigError: its reading is unknown or does not use one of its fields.
    """
    if row.reading not in READINGS:
        raise ConfigError(
            f"rivals.yaml, {name}: reading is {row.reading!r}, expected one of {', '.join(READINGS)}"
        )
    if unused := sorted(row.chosen - READINGS[row.reading].takes):
        raise ConfigError(
            f"rivals.yaml, {name}: the reading {row.reading!r} does not use {', '.join(unused)}: leave it out"
        )
    return row


RIVALS: dict[str, RivalRow] = {name: checked(name, row) for name, row in rival_rows().items()}
