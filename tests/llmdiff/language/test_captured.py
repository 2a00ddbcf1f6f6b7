"""What CUDA graphs capture, run as it is on the CPU: equal to the eager pass, and never waiting for the device."""

from typing import Any

import pytest
import torch
from tiny.waits import Waits

from llmdiff.language import ContextEncoding, DecoderLLM
from llmdiff.language.captured import BUCKETS, Bucket
from llmdiff.language.finite import FiniteWatch
from llmdiff.language.lone_calls import LONES
from llmdiff.language.rows import TokenRows

from .conftest import PROMPTS, tiny_llm


def context_for(llm: DecoderLLM, **settings: Any) -> ContextEncoding:
    context = ContextEncoding(llm.num_blocks, llm.hidden_size, **settings)
    with torch.no_grad():
        for gains in (context.gamma, context.kappa):
            if gains is not None:
                gains.normal_()
    context.calibrate(llm, PROMPTS)
    return context


def read(context: ContextEncoding, llm: DecoderLLM, prompts: list[str], *, weighted: bool = False) -> Any:
    """Return c of the real rows in a bucket and in an eager pass; None if there is no bucket for it."""
    tokens = llm.tokenize(
        prompts, template=context.template, max_length=context.max_length, weighted=weighted
    )
    rows = TokenRows.of(tokens, llm.device)
    weights = None if tokens.weights is None else rows.of_tokens(tokens.weights)[:, None]
    bucket = Bucket.of(context, llm, rows, tokens.prefix_ids)
    if bucket is None:
        return None
    with torch.no_grad():
        c, sums = bucket.read(bucket.rows.run_ids, bucket.weights(weights))
        assert bool(sums.isfinite().all())
        return bucket.real(c), context.sum_rows(llm, rows, tokens.prefix_ids, weights)


@pytest.mark.parametrize("lone", LONES)
def test_padding_to_a_bucket_changes_nothing(any_llm: DecoderLLM, lone: Any) -> None:
    context = context_for(any_llm, lone=lone)
    if lone not in any_llm.reading.joined:
        assert read(context, any_llm, PROMPTS) is None
        return
    for prompts in (PROMPTS, PROMPTS[:1]):
        found, expected = read(context, any_llm, prompts)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"template": "Draw {prompt} now", "encoding": "paper"}])
def test_weights_and_templates_are_read(llama: DecoderLLM, settings: dict[str, Any]) -> None:
    context = context_for(llama, **settings)
    weighted = ["a (red:1.8) apple", "two blue stars"]
    found, expected = read(context, llama, weighted, weighted=True)
    plain, _ = read(context, llama, ["a red apple", "two blue stars"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_waiting_is_seen() -> None:
    numbers = torch.arange(3.0)
    with Waits() as waits:
        numbers[0].item()
        numbers[numbers > 1]
        numbers.nonzero()
    assert set(waits.found) == {"_local_scalar_dense", "index", "nonzero"}


def test_a_pass_never_waits_for_the_device(any_llm: DecoderLLM) -> None:
    context = context_for(any_llm, lone="token")
    tokens = any_llm.tokenize(PROMPTS)
    rows = TokenRows.of(tokens, any_llm.device)
    any_llm.prefix_states(tokens.prefix_ids)
    bucket = Bucket.of(context, any_llm, rows, tokens.prefix_ids)
    with torch.no_grad(), Waits() as waits:
        context.sum_rows(
            any_llm, rows, tokens.prefix_ids, None, FiniteWatch(any_llm.num_blocks + 1, any_llm.device)
        )
    if any_llm.reading.lone_calls == "cached":  # the others run models' own code for recurrence and routing
        assert bucket is not None
        with torch.no_grad(), waits:
            bucket.read(bucket.rows.run_ids, bucket.weights(None))
        assert not waits.found, waits.found


def test_one_bucket_serves_several_lengths(llama: DecoderLLM) -> None:
    shapes, context = set(), context_for(llama)
    for words in (1, 3, 5, BUCKETS[0] + 1):
        tokens = llama.tokenize(" ".join(["a"] * words))
        bucket = Bucket.of(context, llama, TokenRows.of(tokens, llama.device), tokens.prefix_ids)
        assert bucket is not None
        shapes.add(tuple(bucket.rows.run_ids.shape))
    assert shapes <= {(1, BUCKETS[0]), (1, BUCKETS[1]), (1, BUCKETS[2])}
    assert len(shapes) >= 2


def test_what_is_read_eagerly() -> None:
    llm = tiny_llm("llama")
    context = context_for(llm)

    def has_bucket(prompts: str | list[str]) -> bool:
        tokens = llm.tokenize(prompts)
        return Bucket.of(context, llm, TokenRows.of(tokens, llm.device), tokens.prefix_ids) is not None

    assert has_bucket("a red cat")
    assert not has_bucket("")
    assert not has_bucket("a " * BUCKETS[-1])  # longer than every bucket, and than a joined call
    assert not has_bucket(["two blue stars above a big dog in the snow"] * 60)
    short = tiny_llm("llama", max_position_embeddings=8)
    tokens = short.tokenize("cat")
    assert Bucket.of(context_for(short), short, TokenRows.of(tokens, short.device), tokens.prefix_ids) is None
    llm.free_after_encoding = True
    assert not has_bucket("a red cat")
