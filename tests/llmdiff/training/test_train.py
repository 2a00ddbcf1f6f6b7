"""`llmdiff train` and `prepare` on tiny real models: what a run leaves, resumes, and refuses."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.cli.main import app
from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.training import adapter_training, trainer, warm_start
from llmdiff.training.checkpoint import checkpoints, load_checkpoint
from llmdiff.training.config import TrainConfig, load_config
from llmdiff.training.log import read_log
from llmdiff.training.objective import Objective
from llmdiff.training.plan import make_plan
from llmdiff.training.prepare import load_models, prepare
from llmdiff.training.trainer import train_adapter

from .tiny_run import Runs


def _weights(folder):
    return load_file(next(Path(folder).glob("*.safetensors")))


def test_a_run_leaves_adapter_config_samples_log_and_checkpoints(config, tmp_path):
    settings = config(watch__trackers=None, watch__sample_every=2)  # tensorboard, where it is installed
    folder = train_adapter(settings)
    run = tmp_path / "run"
    assert folder == run / "adapter"
    assert "# run\n" in (folder / "README.md").read_text()
    LLMDiffAdapter.from_pretrained(folder)
    assert TrainConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text())) == settings
    assert {path.name for path in (run / "samples").iterdir()} == {"step-00000002.png", "step-00000004.png"}
    lines = read_log(run / "log.jsonl")
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    known = {"loss", "grad_norm", "samples_per_s", "memory_gb", "learning_rate"}
    assert any(known < line.keys() and any("loss_quarter" in name for name in line) for line in lines)
    state, tensors = load_checkpoint(run)
    assert state["metadata"]["config"]["training"]["steps"] == 4
    gains = [name for name in tensors if "gamma" in name]
    assert not gains  # frozen, so that encodings stay what they are
    assert [step for step, _ in checkpoints(run)][-1] == 4


def test_tensorboard_has_one_named_run_with_curves_settings_and_sample_pictures(config, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_adapter(config("my run", watch__trackers=["tensorboard"], watch__sample_every=2))
    logs = tmp_path / "my run" / "tensorboard"
    assert {path.parent for path in logs.rglob("events.out.*")} == {logs / "my-run"}
    found = events.EventAccumulator(str(logs / "my-run")).Reload()
    pictures = found.Images("samples")
    assert [one.step for one in pictures] == [2, 4]
    assert found.Scalars("loss")[-1].step == 4
    assert found.Tags()["tensors"] == ["settings/text_summary"]
    with Image.open(tmp_path / "my run" / "samples" / "step-00000004.png") as saved:
        shown = Image.open(io.BytesIO(pictures[1].encoded_image_string))
        assert np.array_equal(np.asarray(shown), np.asarray(saved))


@pytest.mark.hostile("non-finite pictures")
def test_sample_pictures_that_are_not_finite_are_left_out_and_told_of(config, monkeypatch, caplog, tmp_path):
    load = trainer.load_models

    def overflows(*given):
        parts = load(*given)
        with torch.no_grad():
            parts.pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
        return parts

    monkeypatch.setattr(trainer, "load_models", overflows)
    LLMDiffAdapter.from_pretrained(train_adapter(config()))
    assert (
        "no sample pictures of step 4: the picture is not finite: the VAE overflows in float32" in caplog.text
    )
    assert not list((tmp_path / "run").rglob("step-*.png"))


@pytest.mark.hostile("sizes and guidance")
def test_more_sample_steps_than_the_scheduler_has_are_refused_before_training(config, tmp_path):
    with pytest.raises(ConfigError, match=r"watch\.sample_steps is 1001, expected at most 1000"):
        train_adapter(config(watch__sample_steps=1001))


def test_a_stopped_run_resumes_bit_for_bit(config, monkeypatch, interrupt):
    whole = _weights(train_adapter(config("whole", training__caption_dropout=0.5)))
    interrupt(4, Objective, "noised")  # once a step
    with pytest.raises(KeyboardInterrupt):
        train_adapter(config("cut", training__caption_dropout=0.5))
    monkeypatch.undo()
    resumed = _weights(train_adapter(config("cut", training__caption_dropout=0.5)))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(LLMDiffError, match="batch_size"):
        train_adapter(config("cut", training__caption_dropout=0.5, training__batch_size=3))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "training__precision": "bf16",
            "data__crop": "random",
            "data__flip": True,
            "data__store_latents": False,
        },
        {"training__precision": "bf16", "data__store_latents": True},  # also what GPUs are configured with
        {"training__gains": "learned", "training__optimizer": "muon", "training__accumulation_steps": 2},
        {"base": "sdxl", "training__noise": False},
        {"training__gains": "learned", "training__score_groups": 2, "training__warm_start_steps": 2},
        {"training__gains": "first", "training__gain_steps": 2},
        {"training__gains": "learned", "models__routing": 2, "models__routing_form": "softmax"},
        {
            "training__gains": "first",
            "training__gain_steps": 2,
            "training__warm_start_steps": 3,
            "models__routing": 4,
        },
    ],
)
def test_every_way_of_training_runs_and_changes_the_adapter(config, changes, tmp_path):
    folder = train_adapter(config(**changes, watch__prompts=[]))
    before = load_models(config(**changes), torch.device("cpu")).adapter.state_dict()
    after = _weights(folder)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name].cpu())}
    assert any("branches" in name for name in moved)
    assert ("context.gamma" in moved) == (changes.get("training__gains") in ("first", "learned"))
    assert ("context.routed.kappa" in moved) == ("models__routing" in changes)
    assert ("context.h_raw" in moved) == changes.get("training__noise", True)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in after.values())


def test_groups_are_given_to_a_trained_adapter_without_groups(config, tmp_path):
    plain = train_adapter(config("plain", watch__prompts=[]))
    started = {"models__start": str(plain), "models__routing": 2, "watch__prompts": []}
    with pytest.raises(ConfigError, match=r"models.routing is 2, but training.gains is frozen"):
        train_adapter(config("frozen", **started))
    changes = {**started, "training__gains": "learned", "training__steps": 1}
    before = load_models(config("routed", **changes), torch.device("cpu")).adapter
    assert before.groups == 2
    for name, value in _weights(plain).items():
        assert torch.equal(before.state_dict()[name], value), name
    routed = train_adapter(config("routed", **changes))
    assert _weights(routed)["context.routed.gamma"].any()
    planned = make_plan(config("routed", **changes)).trained
    assert sum(planned.values()) == sum(one.numel() for one in before.parameters() if one.requires_grad)
    # Its own groups may stay frozen.
    again = config("again", **started | {"models__start": str(routed)})
    assert load_models(again, torch.device("cpu")).adapter.groups == 2
    more = config("more", **changes | {"models__start": str(routed), "models__routing": 4})
    for reads_them in (make_plan, lambda one: load_models(one, torch.device("cpu"))):
        with pytest.raises(
            ConfigError, match="routing is 4, but the adapter cannot be given groups: it has 2"
        ):
            reads_them(more)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_the_adapter_that_one_would(config, tmp_path, sharded):
    # Two parts a step either way, in turn or at once.
    same = {"training__gains": "learned", "training__ema_horizon": 2}
    settings = {
        "one": config("one", training__accumulation_steps=2, **same),
        "two": config("two", training__sharded=sharded, **same),
    }
    assert Runs(lambda folder: train_adapter(settings["one"])).finish(tmp_path / "logs-1", 1) == [0]
    assert Runs(lambda folder: train_adapter(settings["two"])).finish(tmp_path / "logs-2", 2) == [0, 0]
    one, two = (_weights(tmp_path / name / "adapter") for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
    assert (tmp_path / "two" / "samples" / "step-00000004.png").is_file()


def test_stored_scores_train_what_the_llm_in_every_step_does(config, tmp_path):
    """As many groups as blocks: the same sum, stored in half precision. One group: one gain for all blocks."""
    learned = {"training__gains": "learned", "watch__prompts": []}
    blocks = load_models(config(), torch.device("cpu")).llm.num_blocks
    online = _weights(train_adapter(config("online", **learned)))
    stored = _weights(train_adapter(config("stored", **learned, training__score_groups=blocks)))
    for name, value in online.items():
        assert torch.allclose(value, stored[name], atol=2e-3), name
    assert len(online["context.gamma"].unique()) == blocks
    single = _weights(train_adapter(config("single", **learned, training__score_groups=1)))
    assert len(single["context.gamma"].unique()) == 1
    assert single["context.gamma"][0] != 1


def test_a_warm_start_comes_first_and_resumes_bit_for_bit(config, monkeypatch, interrupt, tmp_path):
    changes = {"training__warm_start_steps": 5, "watch__prompts": []}
    whole = _weights(train_adapter(config("whole", **changes)))
    explained = [line["unexplained"] for line in read_log(tmp_path / "whole" / "warm-start" / "log.jsonl")]
    assert len(explained) >= 1
    cold = _weights(train_adapter(config("cold", watch__prompts=[])))
    assert not torch.equal(cold["phi.weight"], whole["phi.weight"])

    interrupt(4, ContextEncoding, "add_noise")  # once a step
    with pytest.raises(KeyboardInterrupt):
        train_adapter(config("cut", **changes))
    assert not (tmp_path / "cut" / "log.jsonl").exists()
    monkeypatch.undo()
    resumed = _weights(train_adapter(config("cut", **changes)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


FIRST = {
    "training__gains": "first",
    "training__gain_steps": 2,
    "training__warm_start_steps": 5,
    "training__lr_share_after_warm_start": 0.5,
    "training__log_every": 1,
    "watch__prompts": [],
}


def test_gains_learn_first_and_then_stay(config, monkeypatch, interrupt, tmp_path):
    whole = _weights(train_adapter(config("whole", **FIRST)))
    logs = {name: read_log(tmp_path / "whole" / name / "log.jsonl") for name in ("gains", "warm-start", ".")}
    assert {name: lines[-1]["step"] for name, lines in logs.items()} == {"gains": 2, "warm-start": 3, ".": 4}
    assert max(line["learning_rate"] for line in logs["warm-start"]) == pytest.approx(1e-4)
    assert max(line.get("learning_rate", 0) for line in logs["."]) == pytest.approx(0.5e-4)
    learned = load_checkpoint(tmp_path / "whole" / "gains")[1]
    for name in ("gamma", "kappa", "h_raw"):
        assert torch.equal(whole[f"context.{name}"], learned[f"ema.adapter.context.{name}"])
    assert not torch.equal(whole["phi.weight"], learned["ema.adapter.phi.weight"])
    assert not any("context" in name for name in load_checkpoint(tmp_path / "whole")[1])

    for cut, owner, name in ((2, adapter_training, "warm_start"), (3, Objective, "noised")):
        interrupt(cut, owner, name)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(config(f"cut-{name}", **FIRST))
        monkeypatch.undo()
        resumed = _weights(train_adapter(config(f"cut-{name}", **FIRST)))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_gains_learn_from_few_captions(config, tmp_path):
    settings = config(**FIRST, training__gain_captions=1)
    train_adapter(settings)
    scores = [len(load_file(path)) for path in (tmp_path / "store" / "scores").rglob("*.safetensors")]
    assert sum(scores) <= 2 * 2 + 1  # at least a batch of samples, of two captions at most, and the empty one


def test_the_base_reads_the_plain_wording_and_the_llm_the_other(config, models, monkeypatch, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for index in range(8):
        Image.new("RGB", (32, 32), (30 * index, 0, 0)).save(folder / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "text": f"automobile {index}", "plain": f"car {index}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read, encoded = [], []
    base, llm = warm_start.encode_with_base, ContextEncoding.encode
    monkeypatch.setattr(warm_start, "encode_with_base", lambda *given: read.extend(given[1]) or base(*given))
    monkeypatch.setattr(
        ContextEncoding, "encode", lambda *given, **more: encoded.extend(given[2]) or llm(*given, **more)
    )
    changes = {"data__path": str(folder), "training__warm_start_steps": 3, "watch__prompts": []}
    train_adapter(config(**changes, training__caption_dropout=0.0, watch__validation_samples=2))
    assert len(read) == 6
    assert {f"automobile {index}" for index in range(8)}.isdisjoint(read)
    assert any(text.startswith("car ") for text in read)
    assert set(encoded) == {f"automobile {index}" for index in range(8)} | {""}


def test_gradient_checkpointing_changes_no_gradient(config, tmp_path):
    norms = []
    for asked in (False, True):
        train_adapter(config(f"run-{asked}", training__gradient_checkpointing=asked, watch__prompts=[]))
        norms.append(read_log(tmp_path / f"run-{asked}" / "log.jsonl")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_prepare_makes_everything_once_and_train_reads_nothing_else(config, monkeypatch):
    settings = config()
    parts = load_models(settings, torch.device("cpu"))
    assert prepare(settings, parts) == {"captions": 4, "pictures": 12}
    assert prepare(settings, parts) == {"captions": 0, "pictures": 0}

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("llmdiff.language.encoding.ContextEncoding.encode", refuse)
    monkeypatch.setattr("llmdiff.training.prepare.encode_pictures", refuse)
    monkeypatch.setattr("llmdiff.training.batches.encode_pictures", refuse)
    train_adapter(config(watch__prompts=[]))


def _write(tmp_path, config, **changes):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json") | changes))
    return path


def test_the_command_takes_values_and_says_where_the_adapter_is(config, tmp_path):
    path = _write(tmp_path, config(watch__prompts=["two dogs"], watch__trackers=["tensorboard"]))
    ran = CliRunner().invoke(app, ["train", str(path), "training.steps=1", f"out={tmp_path / 'other'}"])
    assert ran.exit_code == 0, ran.output
    adapter, curves, then = ran.stdout.splitlines()
    assert adapter == str(tmp_path / "other" / "adapter")
    assert curves.endswith(f"tensorboard --logdir {tmp_path / 'other' / 'tensorboard'}")
    assert then == f"next: llmdiff compare 'two dogs' --adapter {adapter}"
    assert load_checkpoint(tmp_path / "other")[0]["step"] == 1
    ran = CliRunner().invoke(app, ["prepare", str(path)])
    assert "12 good samples, 0 in quarantine" in ran.output
    assert ran.stdout.endswith(f"next: llmdiff train {path}\n")


@pytest.mark.parametrize("verbose", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_new_process_shows_bars_of_work_with_totals_and_no_bars_of_loading(config, tmp_path, verbose):
    path = _write(tmp_path, config(watch__prompts=[], training__steps=1))
    words = ["-m", "llmdiff.cli", "train", path, *(["--verbose"] if verbose else [])]
    # Commands that this process has run may have silenced the libraries for its children.
    own = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    ran = subprocess.run(
        [sys.executable, *words], env=own, capture_output=True, text=True, timeout=240, check=True
    )
    assert ("Loading" in ran.stderr) is verbose
    bars = {line.partition(":")[0] for line in re.split(r"[\r\n]", ran.stderr) if "%|" in line}
    assert bars >= {"checking", "encoding captions", "encoding pictures", "run"}
    assert not re.search(r"\dit \[", ran.stderr)  # what tqdm shows without a total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "training.stepps=3",
            "unknown key 'training.stepps' (did you mean 'steps'?), known are steps, batch_size",
        ),
        ("colour=red", "unknown key 'colour', known are out, store"),
        ("training.steps=0", "steps is 0, and warm_start_steps too: set steps"),
        ("data.flip=true", "store_latents keeps one cut of each picture"),
        ("training", "expected section.key=value"),
        ("data.kind=films", "data.kind is 'films'"),
        ("models.llm=/nowhere", "/nowhere"),
        ("models.base=/nowhere", "base pipeline '/nowhere' is neither a folder"),
        ("models.routing=2", "models.routing is 2, but training.gains is frozen"),
        ("training.gain_steps=2", "gain_steps is for gains: first, but gains is frozen"),
        ("training.gains=first", "gains: first needs gain_steps above 0 and below steps, got 0"),
        ("watch.validation_samples=11", "are left to train on"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(config, tmp_path, change, message):
    ran = CliRunner().invoke(app, ["train", str(_write(tmp_path, config())), change])
    assert ran.exit_code == 1
    assert message in ran.output
    assert ran.output.splitlines()[-1].startswith("error: ")


def test_a_file_that_is_no_config_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "a.yaml").write_text("[1, 2")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "a.yaml", [])


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_begins_with_its_command(path):
    load_config(path, [])
    assert f" train configs/{path.name}" in path.read_text().split("\n\n")[0]
    assert json.dumps(load_config(path, []).model_dump(mode="json"))
