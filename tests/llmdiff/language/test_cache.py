"""The store of encodings: each caption once, other settings elsewhere, nothing lost but what was not written."""

import pytest
import torch

from llmdiff.errors import CorruptWeightsError
from llmdiff.language.cache import EncodingCache, ScoreCache, encoding_key
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.score_groups import encode_groups

CAPTIONS = ["a cat", "two red apple on the car", "", "a cat"]


def _context(llm, **changes):
    return ContextEncoding(llm.num_blocks, llm.hidden_size, **changes)


@pytest.fixture
def counted(tiny_llm):
    """A tiny LLM and a list that grows by every prompt that it reads."""
    read, tokenize = [], tiny_llm.tokenize

    def counting(prompts, **more):
        read.extend(prompts)
        return tokenize(prompts, **more)

    tiny_llm.tokenize = counting
    return tiny_llm, read


def test_what_comes_back_is_what_the_llm_says(tiny_llm, tmp_path):
    context = _context(tiny_llm)
    kept = EncodingCache(tmp_path, tiny_llm, context).batch(CAPTIONS)
    fresh = context.encode(tiny_llm, CAPTIONS)
    assert torch.equal(kept.token_mask, fresh.token_mask)
    assert torch.allclose(kept.states, fresh.states, atol=1e-2, rtol=1e-3)
    assert kept.states[~kept.token_mask].abs().max() == 0


@pytest.mark.parametrize("groups", [1, 3])
def test_scores_come_back_whatever_the_gains(counted, tmp_path, groups):
    llm, read = counted
    context = _context(llm)
    fresh = encode_groups(context, llm, CAPTIONS, groups=groups)
    read.clear()
    ScoreCache(tmp_path, llm, context, groups=groups).fill(CAPTIONS)
    with torch.no_grad():
        context.gamma.mul_(3)
    kept = ScoreCache(tmp_path, llm, context, groups=groups).batch(CAPTIONS)
    assert len(read) == 3
    assert torch.equal(kept.token_mask, fresh.token_mask)
    assert torch.allclose(kept.parts.float(), fresh.parts, atol=1e-2, rtol=1e-3)
    context.score_scale.mul_(2)
    others = (ScoreCache(tmp_path, llm, context, groups=n) for n in (groups, 2))
    assert all(cache.fill(CAPTIONS) == 3 for cache in others)


def test_a_caption_is_encoded_once(counted, tmp_path):
    llm, read = counted
    cache = EncodingCache(tmp_path, llm, _context(llm))
    assert cache.fill(CAPTIONS) == 3
    assert sorted(read) == sorted(set(CAPTIONS))
    again = EncodingCache(tmp_path, llm, _context(llm))
    assert again.fill([*CAPTIONS, "a dog"]) == 1
    assert read[3:] == ["a dog"]


def test_an_interrupted_run_goes_on_where_it_was(counted, tmp_path, monkeypatch):
    llm, read = counted
    monkeypatch.setattr("llmdiff.language.cache._CHUNK", 4)
    captions = [f"a {'cat ' * n}" for n in range(1, 11)]
    cache = EncodingCache(tmp_path, llm, _context(llm))
    dealt_with = []

    def stop_after_six(done):
        dealt_with.append(done)
        if sum(dealt_with) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(captions, batch_size=2, progress=stop_after_six)
    read.clear()
    assert EncodingCache(tmp_path, llm, _context(llm)).fill(captions) == 6
    assert len(read) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "Picture: {prompt}"},
        {"lone": "token"},
        {"encoding": "paper"},
        {"max_length": 9},
        {"clip": 2.0},
    ],
)
def test_other_settings_are_another_key(tiny_llm, changes):
    assert encoding_key(tiny_llm, _context(tiny_llm)) != encoding_key(tiny_llm, _context(tiny_llm, **changes))


def test_other_gains_weights_names_and_dtypes_are_another_key(make_llm):
    llm = make_llm()
    context = _context(llm)
    keys = {encoding_key(llm, context)}
    assert encoding_key(make_llm(), _context(llm)) in keys
    with torch.no_grad():
        context.gamma[1] += 0.1
    keys.add(encoding_key(llm, context))
    keys.add(encoding_key(make_llm(id="other"), _context(llm)))
    half = make_llm()
    half.model.to(torch.bfloat16)
    keys.add(encoding_key(half, _context(llm)))
    changed = make_llm()
    with torch.no_grad():
        next(changed.model.parameters())[0, 0] += 1
    keys.add(encoding_key(changed, _context(llm)))
    assert len(keys) == 5


def test_a_damaged_file_is_named(tiny_llm, tmp_path):
    cache = EncodingCache(tmp_path, tiny_llm, _context(tiny_llm))
    cache.fill(["a cat"])
    [path] = cache.store.folder.glob("*.safetensors")
    path.write_bytes(b"rubbish")
    with pytest.raises(CorruptWeightsError, match=path.name):
        EncodingCache(tmp_path, tiny_llm, _context(tiny_llm))
