"""The training loop: resuming gives the very same bits, settings are not mixed up, the log tells the truth."""

import json

import pytest
import torch
from torch import nn

from llmdiff.errors import LLMDiffError
from llmdiff.training.loop import Ema, LoopConfig, lr_factor, read_log, train


class _Stop(Exception):
    pass


def _run(folder, *, steps=12, stop_at=None, checkpoint_every_s=0.0, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    config = LoopConfig(
        steps=steps, learning_rate=0.05, lr_warmup_steps=3, checkpoint_every_s=checkpoint_every_s, **changes
    )

    def step_loss(step, generator):
        if step == stop_at:
            raise _Stop
        x = torch.randn(16, 4, generator=generator)
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
    assert not (tmp_path / "stopped" / "checkpoint.json").exists()
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


def test_training_lowers_the_loss_and_leaves_the_average(tmp_path):
    _run(tmp_path, steps=300, checkpoint_every_s=1e9, ema_horizon=10)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert all(line["half"] == pytest.approx(0.5) for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)

    def step_loss(step, generator):
        return model(torch.full((1, 1), float("nan"))).sum(), {}

    with pytest.raises(LLMDiffError, match="nan at step 0"):
        train({"m": model}, step_loss, LoopConfig(steps=2, learning_rate=0.1), tmp_path, title="t")


def test_ema_is_the_weighted_mean_of_what_it_saw():
    parameter = nn.Parameter(torch.zeros(1))
    ema = Ema({"p": parameter}, horizon=4)
    expected = 0.0
    for step in range(20):
        with torch.no_grad():
            parameter.fill_(float(step))
        ema.update(step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.values["p"].item() == pytest.approx(expected, rel=1e-5)


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
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint.json", "log.jsonl", "step-00000012.checkpoint.safetensors"]
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 12
