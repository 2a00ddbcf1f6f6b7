"""The loop in processes of its own: killed, stopped gently, out of disk, two together, sharded."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmdiff.training.checkpoint import checkpoints
from llmdiff.training.log import read_log
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.processes import Processes, attention_kernel

from .tiny_run import Runs, final_weights


@pytest.fixture(scope="module")
def runs():
    return Runs()


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """The final tensors of a run that was left alone, and how long it took, by number of processes."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"whole-{processes}")
        began = time.monotonic()
        assert runs.finish(folder, processes) == [0] * processes
        found[processes] = final_weights(folder), time.monotonic() - began
    return found


def _same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def _killed_at(runs, folder, processes, seconds):
    started = runs.start(folder, processes)
    time.sleep(seconds)
    for process in started:
        process.kill()
    for process in started:
        process.join()
    assert runs.finish(folder, processes) == [0] * processes
    return final_weights(folder)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_any_instant_ends_with_the_same_bits(runs, undisturbed, tmp_path, processes):
    whole, seconds = undisturbed[processes]
    for share in (0.3, 0.6, 0.9):
        assert _same(whole, _killed_at(runs, tmp_path / str(share), processes, share * seconds))


@pytest.mark.soak
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_twenty_random_instants_ends_with_the_same_bits(
    runs, undisturbed, tmp_path, processes
):
    whole, seconds = undisturbed[processes]
    chance = random.Random(processes)
    for instant in range(20):
        assert _same(
            whole, _killed_at(runs, tmp_path / str(instant), processes, chance.uniform(0, 1) * seconds)
        )


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_ends_with_status_0(runs, undisturbed, tmp_path, processes):
    started = runs.start(tmp_path, processes, slow_s=0.05, checkpoint_every_s=1e9)
    while not (tmp_path / "log.jsonl").exists():  # a few steps have been made
        time.sleep(0.02)
        assert started[0].is_alive()
    os.kill(started[-1].pid, signal.SIGTERM)  # one of them is enough
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * processes
    assert not (tmp_path / "finished").exists()
    assert 4 <= checkpoints(tmp_path)[-1][0] < 12
    assert runs.finish(tmp_path, processes) == [0] * processes
    assert _same(undisturbed[processes][0], final_weights(tmp_path))


def test_two_processes_see_other_samples_than_one_another_and_add_their_gradients(runs, tmp_path):
    # The same two parts of every step: by two processes, or one after the other.
    assert runs.finish(tmp_path / "two", 2, dropout=0.0) == [0, 0]
    assert runs.finish(tmp_path / "one", 1, dropout=0.0, accumulation_steps=2) == [0]
    two, one = final_weights(tmp_path / "two"), final_weights(tmp_path / "one")
    assert two.keys() == one.keys()
    for name in two:
        assert torch.allclose(two[name], one[name], atol=1e-5), name
    lines = read_log(tmp_path / "two" / "log.jsonl"), read_log(tmp_path / "one" / "log.jsonl")
    for ours, theirs in zip(*([line for line in run if "loss" in line] for run in lines), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["part_0"] == ours["part_1"] == 1
        assert {"grad_norm", "learning_rate", "memory_gb", "samples_per_s"} <= ours.keys()


def test_sharded_processes_compute_what_whole_ones_do(runs, tmp_path):
    same = {"dropout": 0.0, "lr_schedule": "constant"}
    assert runs.finish(tmp_path / "whole", 2, **same) == [0, 0]
    assert runs.finish(tmp_path / "sharded", 2, sharded=True, steps=6, **same) == [0, 0]
    assert runs.finish(tmp_path / "sharded", 2, sharded=True, **same) == [0, 0]
    measured, drawn = [], []
    for folder in (tmp_path / "whole", tmp_path / "sharded"):
        lines = read_log(folder / "log.jsonl")
        measured.append([line["validation_loss"] for line in lines if "validation_loss" in line])
        drawn.append([float((folder / f"sample-{step}.txt").read_text()) for step in (6, 12)])
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
    assert drawn[0] == pytest.approx(drawn[1], rel=1e-4)
    whole, sharded = final_weights(tmp_path / "whole"), final_weights(tmp_path / "sharded")
    assert whole.keys() == sharded.keys()
    for name in whole:
        assert torch.allclose(whole[name], sharded[name], atol=1e-5), name


@pytest.mark.timeout(900)  # three interpreters import everything anew
def test_a_launcher_starts_two_processes(tmp_path):
    script = Path(__file__).with_name("tiny_run.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(script), str(tmp_path), "steps=3"], capture_output=True, text=True, timeout=880
    )
    assert ran.returncode == 0, ran.stderr
    state = json.loads((checkpoints(tmp_path)[-1][1] / "checkpoint.json").read_text())
    assert (state["step"], state["extra"]["parts_per_step"]) == (3, 2)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(runs, undisturbed, tmp_path):
    assert runs.finish(tmp_path, 1, full_at=7) == [1]
    said = (tmp_path / "stderr-0").read_text()
    assert "OutputError: the checkpoint of step 8 cannot be written" in said
    assert "the one of step 7 is intact" in said
    kept = [step for step, _ in checkpoints(tmp_path)]
    assert kept[-2:] == [6, 7]
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(kept)  # nothing half written is left
    assert runs.finish(tmp_path, 1) == [0]
    assert _same(undisturbed[1][0], final_weights(tmp_path))


def test_a_full_disk_stops_both_processes(runs, tmp_path):
    assert runs.finish(tmp_path, 2, full_at=7) == [1, 1]
    assert "the main process stopped" in (tmp_path / "stderr-1").read_text()


def test_bfloat16_that_the_cpu_lacks_is_named(tmp_path, caplog, monkeypatch):
    config = LoopConfig(steps=1, learning_rate=1.0, precision="bf16")
    for lacks in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda lacks=lacks: {"avx512_bf16": not lacks})
        caplog.clear()
        Processes(config, torch.device("cpu"), tmp_path)
        assert ("has no bfloat16 instructions" in caplog.text) == lacks


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_only_training_in_bfloat16_leaves_the_fused_attention_kernel(in_bfloat16):
    cpu = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bfloat16), attention_kernel(cpu):
        assert torch.backends.cuda.flash_sdp_enabled() != in_bfloat16
    assert torch.backends.cuda.flash_sdp_enabled()
