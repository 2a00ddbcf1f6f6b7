"""A run goes on with what it was begun with, after damage too, and alone in its folder."""

import json
import shutil

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import LLMDiffError, OutputError
from llmdiff.training.checkpoint import best_checkpoint, checkpoints, load_checkpoint, save_checkpoint
from llmdiff.training.config import TrainConfig
from llmdiff.training.loop import train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.resume import flat
from llmdiff.training.trainer import _HARMLESS, train_adapter

from .odd_samples import paint

# What a run is begun with, and what each setting is then changed to.
BEGUN = {"training__steps": 2, "watch__validation_samples": 4, "training__ema_horizon": 100}
CHANGES = {
    "training__min_snr_gamma": 5.0,
    "training__caption_dropout": 0.5,
    "training__weight_decay": 0.5,
    "training__ema_horizon": 10,
    "training__precision": "bf16",
    "training__max_grad_norm": 0.1,
    "training__lr_warmup_steps": 0,
    "training__learning_rate": 1e-3,
    "training__scalar_learning_rate": 1e-2,
    "training__lr_schedule": "constant",
    "training__encodings": "online",
    "training__optimizer": "muon",
    "training__gains": "learned",
    "training__noise": False,
    "training__seed": 1,
    "training__batch_size": 1,
    "training__accumulation_steps": 2,
    "training__warm_start_steps": 1,
    "data__resolution_px": 48,
    "data__multiple_px": 8,
    "data__aspect_buckets": False,
    "data__max_aspect": 1.2,
    "data__min_side_px": 8,
    "data__crop": "random",
    "data__flip": True,
    "data__store_latents": False,
    "watch__validation_samples": 2,
    "models__refiner_layers": 1,
    "models__max_length": 16,
}


@pytest.fixture(scope="module")
def begun(models, tmp_path_factory):
    """The folder of a run that has ended, to be copied by those that go on with it."""
    place = tmp_path_factory.mktemp("begun")
    settings = {
        "out": str(place / "run"),
        "store": str(place / "store"),
        "device": "cpu",
        "models": {"llm": str(models / "llm"), "base": str(models / "sd")},
        "data": {"kind": "folder", "path": str(models / "data"), "resolution_px": 32, "multiple_px": 16}
        | {"min_side_px": 16, "store_latents": True},
        "training": {"batch_size": 2, "lr_warmup_steps": 1, "checkpoint_every_s": 0},
        "watch": {"validate_every": 2, "prompts": [], "trackers": []},
    }
    for name, value in BEGUN.items():
        section, key = name.split("__")
        settings[section][key] = value
    train_adapter(TrainConfig.model_validate(settings))
    return settings


def changed(begun, tmp_path, **changes):
    settings = json.loads(json.dumps(begun)) | {"out": str(tmp_path / "run")}
    if not (tmp_path / "run").exists():
        shutil.copytree(begun["out"], tmp_path / "run")
    for name, value in changes.items():
        section, key = name.split("__")
        settings[section][key] = value
    return TrainConfig.model_validate(settings)


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_does_not_go_on_with_other_settings(begun, tmp_path, name):
    changes = {name: CHANGES[name]}
    if name in ("data__crop", "data__flip"):
        changes["data__store_latents"] = False
    with pytest.raises(LLMDiffError, match=rf"\b{name.split('__')[1]}\b|parts_per_step") as refused:
        train_adapter(changed(begun, tmp_path, training__steps=4, **changes))
    assert "set them back, or use another folder" in str(refused.value)
    assert checkpoints(tmp_path / "run")[-1][0] == 2


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize("what", ["a picture", "a caption", "the LLM", "the VAE"])
def test_a_run_does_not_go_on_with_other_data_or_models(begun, models, tmp_path, what):
    data = tmp_path / "data"
    shutil.copytree(models / "data", data)
    settings = changed(begun, tmp_path, training__steps=4, data__path=str(data))
    if what == "a picture":
        paint(data / "06.png", (3, 3, 3), keep_time=True)
    elif what == "a caption":
        (data / "06.txt").write_text("blue dog two")
    else:
        part, name = ("llm", "llm") if what == "the LLM" else ("sd", "base")
        shutil.copytree(models / part, tmp_path / part)
        [path] = (tmp_path / part if part == "llm" else tmp_path / part / "vae").glob("*.safetensors")
        tensors = load_file(path)
        next(value for value in tensors.values() if value.numel() > 100).flatten()[-1] += 0.01
        save_file(tensors, path, metadata={"format": "pt"})
        parts = settings.models.model_copy(update={name: str(tmp_path / part)})
        settings = settings.model_copy(update={"models": parts})
        # As if it lay where it was.
        [(_, place)] = checkpoints(tmp_path / "run")[-1:]
        state = json.loads((place / "checkpoint.json").read_text())
        state["extra"][f"models.{name}"] = str(tmp_path / part)
        _, tensors = load_checkpoint(tmp_path / "run")
        save_checkpoint(tmp_path / "run", tensors=tensors, state=state, step=state["step"])
    words = {"the LLM": "weights of the LLM", "the VAE": "weights of the VAE"}.get(what, "samples")
    with pytest.raises(LLMDiffError, match=f"its checkpoint was made with .*{words}"):
        train_adapter(settings)


def test_what_is_harmless_may_change_and_is_said(begun, models, tmp_path, caplog):
    shutil.copytree(models / "data", tmp_path / "data")
    settings = changed(
        begun,
        tmp_path,
        data__path=str(tmp_path / "data"),
        data__threads=1,
        training__steps=3,
        training__prefetch=0,
        training__log_every=1,
        training__keep_last=5,
        watch__validate_every=1,
        watch__sample_every=7,
    )
    train_adapter(settings)
    assert load_checkpoint(tmp_path / "run")[0]["step"] == 3
    assert "steps 3 instead of 2" in caplog.text
    assert "watch.sample_every 7 instead of 1000" in caplog.text


def test_every_setting_is_compared_but_those_that_somebody_has_listed(begun):
    """So that a new one is compared too, and a name on the list is that of a setting."""
    told = set(flat(TrainConfig.model_validate(begun).model_dump(mode="json")))
    assert told >= _HARMLESS
    refused = {name.replace("__", ".") for name in CHANGES}
    assert refused <= told - _HARMLESS


@pytest.mark.hostile("stale stores")
def test_a_damaged_checkpoint_that_was_passed_over_stops_nothing_later(tmp_path):
    def run(steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 1)
        config = LoopConfig(
            steps=steps,
            learning_rate=0.1,
            lr_schedule="constant",
            checkpoint_every_s=0,
            keep_last=1,
            validate_every=1,
        )
        train(
            {"m": model},
            lambda part: (model(torch.ones(1, 1)).square().sum(), {}),
            config,
            tmp_path,
            title="t",
            validate=lambda *_: (float(model.weight.square()), 1.0),
        )

    run(3)
    (tmp_path / "checkpoints" / "step-abc").mkdir()
    (tmp_path / "checkpoints" / "step-00000009").write_text("a file")
    (tmp_path / "checkpoints" / ".step-00000002.partial").mkdir()
    shutil.copytree(tmp_path / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / "step-00000007")
    (tmp_path / "checkpoints" / "step-00000007" / "checkpoint.json").write_bytes(b'{"step": 7, "validation_l')
    run(6)
    kept = [step for step, _ in checkpoints(tmp_path)]
    assert kept[-1] == 6
    assert 7 not in kept
    assert best_checkpoint(tmp_path)[1] in [place for _, place in checkpoints(tmp_path)]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert (tmp_path / "checkpoints" / "step-abc").is_dir()


@pytest.mark.hostile("stale stores")
def test_two_runs_in_one_folder_are_refused(begun, tmp_path):
    settings = changed(begun, tmp_path, training__steps=3)
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(LLMDiffError, match="is in use by another run"),
    ):
        train_adapter(settings)
    train_adapter(settings)


def test_the_command_says_in_one_line_that_settings_differ(begun, tmp_path):
    settings = changed(begun, tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(settings.as_yaml())
    ran = CliRunner().invoke(app, ["train", str(path), "training.optimizer=muon"])
    assert ran.exit_code == 1
    assert ran.output.splitlines()[-1].startswith("error: ")
    assert "training.optimizer" in ran.output.splitlines()[-1]


@pytest.mark.hostile("files and folders")
@pytest.mark.parametrize("name", ["out", "store"])
def test_a_place_that_cannot_be_written_is_one_line(config, tmp_path, name):
    (tmp_path / "file").write_text("")
    settings = config().model_copy(update={name: tmp_path / "file" / "below"})
    with pytest.raises(OutputError, match=r"below.* cannot be written"):
        train_adapter(settings)
