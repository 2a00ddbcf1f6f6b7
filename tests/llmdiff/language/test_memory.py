"""The peak of what torch allocates while encoding, from its own record of every allocation."""

from collections.abc import Callable

import pytest
import torch

from llmdiff.language import ContextEncoding, DecoderLLM

from .conftest import tiny_llm

PROMPTS = ["two blue stars above a big dog in the snow " * 4] * 4


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that was allocated at once, above what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = run()
    del result
    # profile.events() hides what an operation frees again before it ends.
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def build(blocks: int) -> tuple[DecoderLLM, ContextEncoding]:
    llm = tiny_llm("llama", num_hidden_layers=blocks)
    return llm, ContextEncoding(llm.num_blocks, llm.hidden_size)


@pytest.mark.parametrize("weighted", [False, True])
def test_peak_of_encoding_does_not_grow_with_blocks(weighted: bool) -> None:
    prompts = [f"({PROMPTS[0]}:1.3)", *PROMPTS[1:]] if weighted else PROMPTS
    peaks, stored = [], []
    for blocks in (4, 48):
        llm, context = build(blocks)
        context.encode(llm, "a dog")  # the prefix (BOS) is remembered from here on, 1 token per block
        peaks.append(
            peak_bytes(lambda llm=llm, context=context: context.encode(llm, prompts, weighted=weighted))
        )
        stored.append(peak_bytes(lambda llm=llm: llm.block_updates(PROMPTS)))
    assert peaks[0] > 4 * llm.tokenize(PROMPTS).input_ids.numel() * llm.hidden_size  # it sees something
    assert peaks[1] < 1.02 * peaks[0]
    assert stored[1] > 4 * stored[0]  # what keeps every block does grow
