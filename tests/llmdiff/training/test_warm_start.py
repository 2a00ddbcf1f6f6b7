"""A warm start moves the adapter towards what the base's own text encoder gives, and nothing else."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from tiny.families import BUILDERS

from llmdiff.adapter import families, layers
from llmdiff.adapter.installation import install
from llmdiff.controller import LLMController
from llmdiff.errors import UnsupportedPipelineError
from llmdiff.language.cache import EncodingCache
from llmdiff.training.adapter_conditioning import AdapterConditioning
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.warm_start import alike_batch, draw_queries, stored_queries, unexplained, warm_start

CAPTIONS = ["a red cat", "two green apples", "a blue car on the left of a dog", "three dogs", ""]


def _run(pipe, llm, folder, steps, **more):
    torch.manual_seed(3)
    controller = LLMController.create(llm, pipe, calibration_prompts=CAPTIONS[:-1])
    adapter = controller.adapter
    adapter.context.requires_grad_(False)
    kept = EncodingCache(folder / "store", llm, adapter.context)
    warm_start(
        pipe,
        AdapterConditioning(adapter, llm),
        CAPTIONS,
        lambda indices, generator: adapter.condition(kept.batch([CAPTIONS[index] for index in indices])),
        cache(lambda: draw_queries(pipe, CAPTIONS, steps=2, positions=4)),
        LoopConfig(steps=steps, learning_rate=1e-2, lr_warmup_steps=1, log_every=10, ema_horizon=5),
        folder,
        batch_size=4,
        **more,
    )
    return adapter


def test_queries_are_what_the_layers_meet(pipe):
    queries = draw_queries(pipe, CAPTIONS, steps=3, positions=5)
    denoiser = families.denoiser_of(pipe)
    assert set(queries.states) == set(layers.text_layers(denoiser))
    assert len(queries) == len(CAPTIONS) * 3
    steps = pipe.scheduler.timesteps[:3].float()
    assert torch.equal(queries.timesteps, steps.repeat_interleave(len(CAPTIONS)))
    for name, attn in layers.text_layers(denoiser).items():
        assert queries.states[name].shape == (15, 5, attn.to_q.in_features)
        # No two pictures or steps are alike, and nothing hooks the layers any more.
        assert len(queries.states[name].float().flatten(1).unique(dim=0)) == 15
        assert not attn._forward_pre_hooks


def test_the_layers_come_to_give_what_the_base_gives(pipe, make_llm, tmp_path):
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    adapter = _run(pipe, make_llm(), tmp_path, 100)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["unexplained"] < 0.2 * log[0]["unexplained"]
    if adapter.pooled is not None:
        assert log[-1]["unexplained_pooled"] < 0.5 * log[0]["unexplained_pooled"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
    assert adapter.context.gamma.tolist() == [1.0] * 3


def test_the_first_loss_is_what_the_layers_outputs_say(sd_pipe, make_llm, tmp_path):
    llm = make_llm()
    _run(sd_pipe, llm, tmp_path, 1, caption_dropout=0.5)
    figure = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["unexplained"]

    rng = np.random.default_rng([0, 15, 0])
    dropped = rng.random(4) < 0.5
    batch = alike_batch(np.array([*map(len, CAPTIONS)]), 4, 0, 0)
    chosen = [4 if drop else i for drop, i in zip(dropped, batch, strict=True)]
    assert 0 < dropped.sum() < 4
    torch.manual_seed(3)
    fresh = LLMController.create(llm, sd_pipe, calibration_prompts=CAPTIONS[:-1]).adapter
    base = sd_pipe.encode_prompt([CAPTIONS[i] for i in chosen], "cpu", 1, False)[0]
    states, _ = fresh.condition(fresh.context.encode(llm, [CAPTIONS[i] for i in chosen]))
    queries = draw_queries(sd_pipe, CAPTIONS, steps=2, positions=4)
    rows = rng.integers(len(queries), size=4)
    shares = []
    for name, attn in layers.text_layers(sd_pipe.unet).items():
        z = queries.states[name][rows].float()
        wanted = attn(z, base)
        with install(sd_pipe.unet, fresh):
            given = attn(z, states)
        spread = (wanted - wanted.flatten(0, 1).mean(0)) ** 2
        shares.append(float(((given - wanted) ** 2).mean() / spread.mean()))
    # The store holds encodings in half precision.
    assert figure == pytest.approx(sum(shares) / len(shares), rel=1e-2)


def test_batches_are_uniform_over_captions_and_alike_in_length():
    lengths = np.random.default_rng(1).permutation(400)
    batches = [alike_batch(lengths, 10, 7, number) for number in range(4000)]
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 0.15 * np.ptp(lengths)  # of ten random captions: 0.82
    times = np.bincount(np.concatenate(batches), minlength=400)
    assert times.min() > 60  # 100 +- 10
    assert times.max() < 145
    assert all(len(set(batch)) == 10 for batch in batches)
    assert set(alike_batch(lengths[:3], 10, 7, 5)) <= {0, 1, 2}
    # Short and long batches in random order, and the same ones again.
    middle = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(middle[:-1], middle[1:])[0, 1]) < 0.15
    assert np.array_equal(alike_batch(lengths, 10, 7, 123), batches[123])
    assert not np.array_equal(alike_batch(lengths, 10, 8, 123), batches[123])


def test_it_goes_on_where_it_was(sd_pipe, make_llm, tmp_path):
    whole = _run(sd_pipe, make_llm(), tmp_path / "whole", 6)
    again = _run(sd_pipe, make_llm(), tmp_path / "whole", 6)
    assert torch.equal(whole.phi.weight, again.phi.weight)


def test_a_family_without_such_attention_is_refused(tiny_llm, tmp_path):
    with pytest.raises(UnsupportedPipelineError, match="train it on pictures from the start"):
        draw_queries(BUILDERS["pixart"](), CAPTIONS)


def test_a_base_without_its_text_encoder_is_refused(sd_pipe):
    sd_pipe.register_modules(text_encoder=None)
    with pytest.raises(UnsupportedPipelineError, match="text encoder's states"):
        draw_queries(sd_pipe, CAPTIONS)


def test_queries_are_drawn_once_for_a_base_and_read_from_the_store_afterwards(sd_pipe, monkeypatch, tmp_path):
    drawing = {"seed": 3, "steps": 2, "positions": 4}
    drawn = draw_queries(sd_pipe, CAPTIONS, **drawing)
    assert_same(stored_queries(tmp_path, sd_pipe, CAPTIONS, **drawing), drawn)
    with monkeypatch.context() as patched:
        patched.setattr("llmdiff.training.warm_start.draw_queries", None)
        assert_same(stored_queries(tmp_path, sd_pipe, CAPTIONS, **drawing), drawn)
    with torch.no_grad():
        sd_pipe.unet.conv_in.bias += 0.5
    changed = stored_queries(tmp_path, sd_pipe, CAPTIONS, **drawing)
    assert_same(changed, draw_queries(sd_pipe, CAPTIONS, **drawing))
    assert any(not torch.equal(changed.states[name], value) for name, value in drawn.states.items())


def assert_same(one, other):
    assert torch.equal(one.timesteps, other.timesteps)
    assert one.states.keys() == other.states.keys()
    assert all(torch.equal(one.states[name], value) for name, value in other.states.items())


def test_a_layer_that_hardly_varies_counts_less():
    generator = torch.Generator().manual_seed(0)
    wanted = {
        name: size * torch.randn(64, 8, 16, generator=generator) for name, size in (("a", 3.0), ("b", 0.01))
    }
    # As large as the second layer's outputs: nothing of it is explained.
    given = {"a": wanted["a"], "b": torch.zeros_like(wanted["b"])}
    assert float(unexplained(given, wanted)) < 0.01
    assert float(unexplained({**given, "a": torch.zeros_like(wanted["a"])}, wanted)) == pytest.approx(
        0.5, abs=0.02
    )
    alike = {name: one / one.std() for name, one in wanted.items()}
    half = {"a": alike["a"], "b": torch.zeros_like(alike["b"])}
    assert float(unexplained(half, alike)) == pytest.approx(0.5, abs=0.02)
