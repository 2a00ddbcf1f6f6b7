"""The LLM reads ahead while the denoiser trains: no bit changes, nothing hangs, errors arrive."""

import json
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.errors import PromptError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.adapter_conditioning import AdapterConditioning
from llmdiff.training.batches import Prefetcher
from llmdiff.training.objective import Objective
from llmdiff.training.trainer import train_adapter

from .tiny_run import Runs

ONLINE = {"frozen": {"training__encodings": "online"}, "learned": {"training__gains": "learned"}}


def _weights(folder):
    return load_file(next(folder.glob("*.safetensors")))


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _losses(folder):
    """The losses of every step and of every validation, the later of two where a run began a step twice."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {(line["step"], name): line[name] for line in lines for name in line if "loss" in name}


@pytest.fixture
def steps_seen(monkeypatch):
    """What every step has trained on, by run: its noisy latents and the encodings of its captions."""
    noised, condition, seen = Objective.noised, LLMDiffAdapter.condition, []

    def see_latents(self, latents, generator):
        result = noised(self, latents, generator)
        seen.append(result.latents)
        return result

    def see_encoding(self, encoding):
        if torch.is_grad_enabled():
            seen.append(encoding.states)
        return condition(self, encoding)

    monkeypatch.setattr(Objective, "noised", see_latents)
    monkeypatch.setattr(LLMDiffAdapter, "condition", see_encoding)
    return seen


@pytest.mark.parametrize("gains", ONLINE)
def test_prefetching_and_a_stop_change_neither_samples_nor_losses(config, interrupt, steps_seen, gains):
    def trained(name, prefetch):
        folder = config(name, **same, training__prefetch=prefetch)
        steps_seen.clear()
        train_adapter(folder)
        return list(steps_seen), _losses(folder.out)

    same = {
        **ONLINE[gains],
        "training__caption_dropout": 0.3,
        "training__log_every": 1,
        "watch__prompts": [],
    }
    alone, losses = trained("alone", 0)
    ahead, losses_ahead = trained("ahead", 3)
    # To rounding: threads read the captions. Another caption or other noise changes a loss by a hundredth.
    assert len(alone) == 8
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone, ahead, strict=True))
    assert losses_ahead == pytest.approx(losses, rel=1e-5)

    interrupt(4, Objective, "noised")  # once a step
    with pytest.raises(KeyboardInterrupt):
        trained("cut", 2)
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]
    rest, losses_resumed = trained("cut", 1)
    assert all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(alone[-len(rest) :], rest, strict=True)
    )
    assert losses_resumed == pytest.approx(losses, rel=1e-5)


def test_the_llm_reads_in_a_thread_of_its_own_and_keeps_nothing(config, monkeypatch, tmp_path):
    encode, where = ContextEncoding.encode, []

    def watched(self, llm, texts, **more):
        where.append((threading.current_thread().name.split("_")[0], len(texts)))
        return encode(self, llm, texts, **more)

    monkeypatch.setattr(ContextEncoding, "encode", watched)
    settings = config(training__encodings="online", watch__prompts=[], watch__validation_samples=0)
    train_adapter(settings)
    assert where == [("prefetch", 2)] * 4  # every batch once, none after the last step
    assert not (tmp_path / "store" / "encodings").exists()


@pytest.mark.parametrize(("settings", "rests"), [({}, True), ({"training__encodings": "online"}, False)])
def test_the_llm_leaves_the_device_while_it_has_nothing_to_read(config, monkeypatch, settings, rests):
    llms, seen = [], []
    figures = AdapterConditioning.figures

    def watched(self):  # asked in every step
        llms.append(self.llm)
        seen.append(self.llm.free_after_encoding)
        return figures(self)

    monkeypatch.setattr(AdapterConditioning, "figures", watched)
    train_adapter(config(**settings))
    assert set(seen) == {rests}
    assert not llms[-1].free_after_encoding


def test_online_and_stored_encodings_train_the_same_but_for_half_precision(config):
    quiet = {"watch__prompts": []}
    stored = _weights(train_adapter(config("stored", **quiet)))
    online = _weights(train_adapter(config("online", training__encodings="online", **quiet)))
    assert not _same(stored, online)
    for name, value in stored.items():
        assert torch.allclose(value, online[name], atol=5e-4), name


@pytest.mark.parametrize("gains", ONLINE)
def test_what_goes_wrong_in_the_thread_reaches_the_user(config, monkeypatch, gains):
    tokenize, calls = DecoderLLM.tokenize, []

    def fails(self, prompts, **more):
        calls.append(prompts)
        if threading.current_thread().name.startswith("prefetch") and len(calls) > 4:
            raise PromptError("the prompt cannot be read")
        return tokenize(self, prompts, **more)

    monkeypatch.setattr(DecoderLLM, "tokenize", fails)
    with pytest.raises(PromptError, match="the prompt cannot be read"):
        train_adapter(config(**ONLINE[gains], watch__prompts=[], training__steps=20))
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]


def test_the_next_value_is_made_while_the_last_one_is_used():
    begun = threading.Event()

    def make(number):
        if number == 1:
            begun.set()
        return number

    prefetcher = Prefetcher(make, stride=1, ahead=1)
    assert prefetcher.get(0) == 0
    assert begun.wait(10)
    prefetcher.close()


def test_a_closed_prefetcher_begins_nothing_more():
    made = []

    def make(number):
        time.sleep(0.2 * (number > 0))
        made.append(number)
        return number

    prefetcher = Prefetcher(make, stride=1, ahead=5, end=4)
    prefetcher.get(0)
    prefetcher.close()
    assert set(made) <= {0, 1, 2, 3}
    count = len(made)
    time.sleep(0.3)
    assert len(made) == count


def test_processes_that_share_out_the_adapter_read_online_as_one_does(config, tmp_path):
    # While the adapter's own gains are apart, a thread must not read them.
    same = {"training__encodings": "online", "training__ema_horizon": 2, "watch__prompts": []}
    one = config("one", training__accumulation_steps=2, **same)
    two = config("two", training__sharded=True, **same)
    assert Runs(lambda folder: train_adapter(one)).finish(tmp_path / "logs-1", 1) == [0]
    assert Runs(lambda folder: train_adapter(two)).finish(tmp_path / "logs-2", 2) == [0, 0]
    alone, shared = (_weights(tmp_path / name / "adapter") for name in ("one", "two"))
    for name, value in alone.items():
        assert torch.allclose(value, shared[name], atol=1e-4), name
