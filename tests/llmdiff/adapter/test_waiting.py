"""No step of a drawing but the first makes the host wait for the device, unless the base's own does."""

from collections import Counter
from typing import Any

import pytest
from tiny.families import BUILDERS, drawn
from tiny.waits import Waits

from llmdiff.adapter import attach, families

from .conftest import build_adapter

_STEPS = 2


def waits_in_later_calls(pipe: Any) -> Counter[str]:
    """Draw, and return what waits in the denoiser's calls after the first step's."""
    open_modes: list[Waits] = []
    found: list[Counter[str]] = []

    def before(*_: Any) -> None:
        open_modes.append(Waits())
        open_modes[-1].__enter__()

    def after(*_: Any) -> None:
        mode = open_modes.pop()
        mode.__exit__(None, None, None)
        found.append(mode.found)

    denoiser = families.denoiser_of(pipe)
    handles = [
        denoiser.register_forward_pre_hook(before, prepend=True),
        denoiser.register_forward_hook(after),
    ]
    try:
        drawn(pipe, ["a red cat", "two blue dog on the left"], steps=_STEPS)
    finally:
        for handle in handles:
            handle.remove()
    # Prompt and negative prompt may have calls of their own.
    return sum(found[len(found) // _STEPS :], Counter())


@pytest.mark.parametrize("family", [row.name for row in families.FAMILIES])
def test_only_the_first_step_waits(family: str, tiny_llm: Any) -> None:
    pipe = BUILDERS[family]()
    base = waits_in_later_calls(pipe)
    attach(pipe, tiny_llm, build_adapter(pipe, tiny_llm))
    more = waits_in_later_calls(pipe) - base
    # Z-Image's own code writes its padding by a mask where texts differ in length; the base pads both alike.
    assert set(more) <= ({"index", "index_put"} if family == "z-image" else set())
