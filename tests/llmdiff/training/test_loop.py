"""The training loop: resuming gives the very same bits, settings are not mixed up, the log tells the truth."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmdiff.errors import CorruptWeightsError, LLMDiffError
from llmdiff.training.checkpoint import best_checkpoint, checkpoints, load_checkpoint, part
from llmdiff.training.log import read_log
from llmdiff.training.loop import step_part, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.optimizers import lr_factor


class _Stop(Exception):
    pass


def _run(folder, *, steps=12, stop_at=None, checkpoint_every_s=0.0, bias=True, width=8, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width, bias=bias), nn.Tanh(), nn.Linear(width, 1))
    config = LoopConfig(
        steps=steps, learning_rate=0.05, lr_warmup_steps=3, checkpoint_every_s=checkpoint_every_s, **changes
    )

    def step_loss(part):
        if part.step == stop_at:
            raise _Stop
        x = torch.randn(16, 4, generator=part.generator)
        return (model(x).squeeze() - x.sum(1)).square().mean(), {"half": 0.5}

    train({"model": model}, step_loss, config, folder, title="test")
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, stop_at):
    whole = _run(tmp_path / "whole")
    with pytest.raises(_Stop):
        _run(tmp_path / "stopped", stop_at=stop_at)
    resumed = _run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_stopped_between_checkpoints_repeats_the_lost_steps(tmp_path):
    whole = _run(tmp_path / "whole")
    with pytest.raises(_Stop):
        _run(tmp_path / "stopped", stop_at=7, checkpoint_every_s=1e9)
    assert not checkpoints(tmp_path / "stopped")
    resumed = _run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_only_loads(tmp_path):
    first = _run(tmp_path)
    stamp = (tmp_path / "log.jsonl").read_text()
    again = _run(tmp_path, stop_at=0)  # would raise if a single step ran
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "log.jsonl").read_text() == stamp


def test_other_settings_do_not_resume(tmp_path):
    _run(tmp_path)
    with pytest.raises(LLMDiffError, match="seed"):
        _run(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("made", "now", "expected"),
    [
        ({}, {"bias": False}, r"1 differ: model\.0\.bias has shape \(8,\) there and none in this run"),
        ({"bias": False}, {}, r"1 differ: model\.0\.bias has shape none there and \(8,\) in this run"),
        ({}, {"width": 9}, r"3 differ: model\.0\.bias has shape \(8,\) there and \(9,\) in this run"),
    ],
)
def test_other_parameters_do_not_resume(tmp_path, made, now, expected):
    _run(tmp_path, **made)
    with pytest.raises(LLMDiffError, match=expected):
        _run(tmp_path, **now)


def test_training_lowers_the_loss_and_leaves_the_average(tmp_path):
    _run(tmp_path, steps=300, checkpoint_every_s=1e9, ema_horizon=10)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert all(line["half"] == pytest.approx(0.5) for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)

    def step_loss(part):
        return model(torch.full((1, 1), float("nan"))).sum(), {}

    with pytest.raises(LLMDiffError, match="nan at step 0"):
        train({"m": model}, step_loss, LoopConfig(steps=2, learning_rate=0.1), tmp_path, title="t")


def test_an_exploding_gradient_stops_before_the_weights_are_touched(tmp_path):
    model = nn.Linear(1, 1)

    def step_loss(part):
        return model(torch.ones(1, 1)).sum() * (1e9 if part.step == 3 else 1), {}

    config = LoopConfig(steps=5, learning_rate=0.1, checkpoint_every_s=0)
    with pytest.raises(LLMDiffError, match=r"norm is 1.41e\+09 at step 3, more than stop_grad_norm 1e\+06"):
        train({"m": model}, step_loss, config, tmp_path, title="t")
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 3]
    kept = load_checkpoint(tmp_path)[1]["weights.m.weight"]
    assert torch.equal(kept, model.weight)


def test_accumulated_parts_are_the_mean_of_what_each_would_give(tmp_path):
    _run(tmp_path, accumulation_steps=3, steps=1, max_grad_norm=1e9)
    norm = read_log(tmp_path / "log.jsonl")[0]["grad_norm"]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.cat([torch.randn(16, 4, generator=step_part(0, 0, i, 3).generator) for i in range(3)])
    (model(x).squeeze() - x.sum(1)).square().mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert norm == pytest.approx(float(expected), rel=1e-5)


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path):
    model, seen = nn.Linear(4, 4), []

    def step_loss(part):
        output = model(torch.randn(8, 4, generator=part.generator))
        seen.append(output.dtype)
        return output.float().square().mean(), {}

    config = LoopConfig(steps=3, learning_rate=0.1, precision="bf16")
    train({"m": model}, step_loss, config, tmp_path, title="t")
    assert set(seen) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, 'precision "fp16" needs an accelerator'),
        ({"sharded": True}, "there is one process"),
        ({"optimizer": "adamw8bit"}, "bitsandbytes is not installed, expected the extra 'adamw8bit'"),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path, changes, message):
    with pytest.raises(LLMDiffError, match=message):
        _run(tmp_path, **changes)


def test_the_best_and_the_last_checkpoints_are_kept(tmp_path):
    model, losses = nn.Linear(1, 1), iter([5.0, 3.0, 4.0, 6.0, 3.5, 9.0])

    def step_loss(part):
        return model(torch.ones(1, 1)).square().sum(), {}

    config = LoopConfig(
        steps=12, learning_rate=0.1, checkpoint_every_s=0, keep_last=2, validate_every=2, sample_every=100
    )
    train({"m": model}, step_loss, config, tmp_path, title="t", validate=lambda *_: (4 * next(losses), 4.0))
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 11, 12]
    assert best_checkpoint(tmp_path) == (3.0, tmp_path / "checkpoints" / "step-00000004")
    measured = [line["validation_loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" not in line]
    assert measured == [5.0, 3.0, 4.0, 6.0, 3.5, 9.0]


def test_a_kill_while_an_old_checkpoint_is_deleted_stops_nothing(tmp_path, monkeypatch):
    whole = _run(tmp_path / "whole", keep_last=1)
    rmtree = shutil.rmtree

    def dies(path, ignore_errors=False):
        files = sorted(path.iterdir()) if path.is_dir() else []
        if files:
            files[0].unlink()
            raise KeyboardInterrupt
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", keep_last=1)
    monkeypatch.undo()
    assert best_checkpoint(tmp_path / "cut") is None  # every one that is listed can be read
    resumed = _run(tmp_path / "cut", keep_last=1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000012"]


def test_a_damaged_checkpoint_is_passed_over_and_a_cut_log_line_left_out(tmp_path):
    whole = _run(tmp_path / "whole")
    with pytest.raises(_Stop):
        _run(tmp_path / "cut", stop_at=8)
    [(_, _), (step, place)] = checkpoints(tmp_path / "cut")
    assert step == 8
    (place / "checkpoint.safetensors").write_bytes(b"rubbish")
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    resumed = _run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000011")
    (tmp_path / "cut" / "checkpoints" / "step-00000012" / "checkpoint.json").write_text("{}")
    with pytest.raises(CorruptWeightsError, match="damaged or was changed"):
        _run(tmp_path / "cut")


def test_the_averages_are_the_weighted_mean_of_the_weights(tmp_path):
    """decay_n = min(1 - 1/horizon, (1 + n) / (10 + n)), 0 at the first step; compared with checkpoints of all steps."""
    _run(tmp_path, keep_last=100, checkpoint_every_s=0.0)
    expected = None
    for step, place in checkpoints(tmp_path):
        tensors = load_file(place / "checkpoint.safetensors")
        weights, averages = part(tensors, "weights"), part(tensors, "ema")
        decay = min(1 - 1 / 500, step / (9 + step)) if step > 1 else 0.0
        expected = {
            name: decay * expected[name] + (1 - decay) * value if expected else value
            for name, value in weights.items()
        }
        for name, value in averages.items():
            assert torch.allclose(value, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 1, 1, 1]),
        ("linear", [0.1, 1, 0.5, 0]),
        ("cosine", [0.1, 1, 0.5, 0]),
        ("trapezoid", [0.1, 1, 1, 0]),
    ],
)
def test_learning_rate_schedules(schedule, expected):
    config = LoopConfig(steps=110, learning_rate=1.0, lr_warmup_steps=10, lr_schedule=schedule)
    assert [lr_factor(config, step) for step in (0, 10, 60, 110)] == pytest.approx(expected)


def test_the_checkpoint_holds_no_pickle(tmp_path):
    _run(tmp_path)
    place = tmp_path / "checkpoints" / "step-00000012"
    assert sorted(path.name for path in place.iterdir()) == [
        "checkpoint.json",
        "checkpoint.safetensors",
        "manifest.json",
    ]
    assert json.loads((place / "checkpoint.json").read_text())["step"] == 12


def test_a_short_stage_warms_up_for_a_share_of_it_and_decays_to_zero():
    short = LoopConfig(steps=100, learning_rate=1.0, lr_warmup_steps=100, lr_warmup_share=0.1)
    assert [lr_factor(short, step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_factor(short, 99) < 1e-3
    # Without a share the warm-up takes all of it.
    assert lr_factor(LoopConfig(steps=100, learning_rate=1.0, lr_warmup_steps=100), 99) == 1.0
