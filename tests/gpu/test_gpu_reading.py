"""Prompts read by CUDA graphs: the eager pass's states, for every tiny kind of LLM, and a fallback that says so."""

import logging
from typing import Any

import pytest
import torch

from llmdiff.language import ContextEncoding
from tests.llmdiff.language.conftest import KIND_NAMES, PROMPTS, tiny_llm

_OTHERS = ["a blue dog", "an apple above two cat", "", "a car"]


def context_for(llm: Any, **settings: Any) -> ContextEncoding:
    context = ContextEncoding(llm.num_blocks, llm.hidden_size, **settings).to(llm.device)
    context.calibrate(llm, PROMPTS)
    return context


def apart(one: Any, other: Any) -> float:
    return float((one.states - other.states).norm() / other.states.norm())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_graphs_give_the_eager_states(
    kind: str, dtype: torch.dtype, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    llm = tiny_llm(kind)
    llm.model.to(dtype)
    llm.to("cuda")
    context = context_for(llm)
    llm.captures = False
    expected = [context.encode(llm, prompts) for prompts in (PROMPTS, _OTHERS)]
    llm.captures = True
    with caplog.at_level(logging.INFO, "llmdiff"), torch.inference_mode():
        for _ in range(4):  # captured at the third
            assert apart(context.encode(llm, PROMPTS), expected[0]) < most
    for _ in range(2):  # other prompts of the same size
        assert apart(context.encode(llm, _OTHERS), expected[1]) < most
    said = [record for record in caplog.records if "tokens are read" in record.getMessage()]
    joined = context.lone in llm.reading.joined
    assert len(said) >= int(joined), "which way is used has to be said"
    assert not any("differ by" in record.getMessage() for record in said)


def test_changed_gains_and_moved_weights_are_seen() -> None:
    llm = tiny_llm("llama")
    llm.to("cuda")
    context = context_for(llm)
    for _ in range(4):
        before = context.encode(llm, PROMPTS)
    with torch.no_grad():
        context.gamma.mul_(2)
    changed = context.encode(llm, PROMPTS)
    llm.captures = False
    assert apart(changed, context.encode(llm, PROMPTS)) < 1e-5
    assert apart(changed, before) > 1e-3
    llm.captures = True
    llm.to("cpu")
    llm.to("cuda")
    assert apart(context.encode(llm, PROMPTS), changed) < 1e-5


def test_a_full_device_is_said_once_and_read_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    llm = tiny_llm("llama")
    llm.to("cuda")
    context = context_for(llm)
    expected = context.encode(llm, PROMPTS)
    with caplog.at_level(logging.WARNING, "llmdiff"):
        free, total = torch.cuda.mem_get_info()
        # What is cached already is enough for an eager pass; a graph needs a pool of its own.
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        try:
            found = [context.encode(llm, PROMPTS) for _ in range(5)]
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(apart(one, expected) < 1e-5 for one in found)
    assert free > 0
    assert sum("cannot be captured" in record.getMessage() for record in caplog.records) == 1
