"""Nothing stale is trained on: changed pictures, models and settings are noticed, damage is named, runs do not mix."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import CorruptWeightsError, DataError, LLMDiffError, OutputError
from llmdiff.language.cache import EncodingCache, encoding_key
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.checkpoint import best_checkpoint, checkpoints, load_checkpoint, save_checkpoint
from llmdiff.training.config import TrainConfig
from llmdiff.training.loop import LoopConfig, train
from llmdiff.training.prepare import latent_store, load_parts, load_samples, missing_latents, prepare
from llmdiff.training.resume import flat
from llmdiff.training.runs import _HARMLESS
from llmdiff.training.trainer import train_adapter

CPU = torch.device("cpu")


@pytest.fixture
def own(models, tmp_path, config):
    """A configuration over a copy of the pictures, and that copy's folder."""
    shutil.copytree(models / "data", tmp_path / "data")

    def make(out="run", **changes):
        return config(out, data__path=str(tmp_path / "data"), watch__prompts=[], **changes)

    return make, tmp_path / "data"


def paint(path, colour, *, keep_time=False):
    """Another picture of the same size under the same name."""
    before = path.stat()
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, colour).save(path)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def weights(folder):
    return load_file(next(Path(folder).glob("*.safetensors")))


@pytest.mark.hostile("stale stores")
def test_pictures_that_were_painted_over_are_trained_on_anew(own):
    make, data = own
    first = weights(train_adapter(make("one")))
    for path in data.glob("*.png"):
        paint(path, (250, 5, 120))
    again = weights(train_adapter(make("two")))
    fresh = weights(train_adapter(make("three").model_copy(update={"store": data.parent / "new-store"})))
    assert any(not torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(fresh[name], again[name]) for name in first)


@pytest.mark.hostile("stale stores")
def test_only_what_changed_is_encoded_again(own):
    make, data = own
    settings = make()
    parts = load_parts(settings, CPU)
    assert prepare(settings, parts)["pictures"] == 12
    pipe, store = parts.pipe, latent_store(settings, parts.pipe.vae, parts.samples)

    def missing():
        samples = load_samples(settings, pipe)
        return len(missing_latents(latent_store(settings, pipe.vae, samples), samples))

    (data / "03.txt").write_text("another caption")
    (data / "05.png").rename(data / "99.png")
    (data / "05.txt").rename(data / "99.txt")
    shutil.copy(data / "07.png", data / "08-again.png")
    (data / "08-again.txt").write_text("the same picture")
    (data / "11.txt").unlink()
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"max_bad_share": 0.5})})
    assert missing() == 0
    paint(data / "02.png", (1, 2, 3))
    assert missing() == 1
    assert latent_store(settings, pipe.vae, load_samples(settings, pipe)).folder == store.folder


@pytest.mark.hostile("stale stores")
def test_a_picture_turned_into_another_shape_gets_its_own_bucket(own):
    make, data = own
    settings = make(data__multiple_px=8)
    parts = load_parts(settings, CPU)
    before = parts.samples.rows[1].tolist()
    Image.new("RGB", (32, 48), (9, 9, 9)).save(data / "01.png")
    after = load_samples(settings, parts.pipe).rows[1].tolist()
    assert (before[1:3], after[1:3]) == ([32, 32], [32, 48])
    assert before[3] != after[3]


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize("gone", [False, True])
def test_prepare_again_looks_again(own, gone):
    """Even where neither size nor time tell that the picture is another one."""
    make, data = own
    settings = make()
    samples = load_samples(settings, load_parts(settings, CPU).pipe)
    content = (data / "04.png").read_bytes()
    stamp = (data / "04.png").stat()
    if gone:
        (data / "04.png").unlink()
    else:
        (data / "04.png").write_bytes(content[:40] + bytes(len(content) - 40))
        os.utime(data / "04.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DataError, match=r"was readable before and is not now.*prepare again"):
        samples.load(4, np.random.default_rng(0))
    again = load_samples(make(data__max_bad_share=1.0), load_parts(make(data__max_bad_share=1.0), CPU).pipe)
    assert (len(again), again.quarantined) == (11, 0 if gone else 1)


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize(
    "change",
    ["a late weight", "a buffer", "the tokenizer", "a special token", "the configuration"],
)
def test_any_change_of_the_llm_is_another_key(make_llm, change):
    llm, other = make_llm(), make_llm()
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    assert encoding_key(llm, context) == encoding_key(other, context)
    if change == "a late weight":
        with torch.no_grad():
            next(p for p in other.model.parameters() if p.numel() > 100).flatten()[-1] += 1e-3
    elif change == "a buffer":
        other.model.register_buffer("scale", torch.ones(1))
    elif change == "the tokenizer":
        other.tokenizer.add_tokens(["zebra"])
    elif change == "a special token":
        other.tokenizer.add_special_tokens({"bos_token": "a"})
    else:
        other.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    assert encoding_key(llm, context) != encoding_key(other, context)


@pytest.mark.hostile("stale stores")
def test_a_change_after_the_first_digest_is_noticed(make_llm):
    llm = make_llm()
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    keys = [encoding_key(llm, context), encoding_key(llm, context)]
    with torch.no_grad():
        llm.model.get_input_embeddings().weight[-1, -1] += 1
    keys.append(encoding_key(llm, context))
    weight = torch.nn.Parameter(llm.model.get_input_embeddings().weight.detach() * 2)
    llm.model.get_input_embeddings().weight = weight
    keys.append(encoding_key(llm, context))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_key_does_not_know_where_the_llm_lies(models, tmp_path):
    from llmdiff.language.llm import DecoderLLM

    shutil.copytree(models / "llm", tmp_path / "elsewhere" / "llm")
    llms = [DecoderLLM.from_pretrained(str(place / "llm")) for place in (models, tmp_path / "elsewhere")]
    llms[1].tokenize(["a longer text than that", "a"])  # leaves its padding behind
    context = ContextEncoding(llms[0].num_blocks, llms[0].hidden_size)
    assert encoding_key(llms[0], context) == encoding_key(llms[1], context)


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize("change", ["a late weight", "the scaling factor"])
def test_any_change_of_the_vae_is_another_store(config, change):
    settings = config()
    parts = load_parts(settings, CPU)
    before = latent_store(settings, parts.pipe.vae, parts.samples).folder
    if change == "a late weight":
        with torch.no_grad():
            next(p for p in parts.pipe.vae.parameters() if p.numel() > 100).flatten()[-1] += 1e-3
    else:
        parts.pipe.vae.register_to_config(scaling_factor=0.5)
    assert latent_store(settings, parts.pipe.vae, parts.samples).folder != before


@pytest.mark.hostile("stale stores")
@pytest.mark.parametrize("place", [-1, -300, "name", "sum"])
def test_a_flipped_byte_of_a_store_is_named(tmp_path, place):
    store = TensorStore(tmp_path)
    store.put({"a": torch.arange(400.0), "b": torch.ones(3)})
    [path] = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if place == "name":
        content[content.index(b'"a":{') + 1] = ord("c")
    elif place == "sum":
        content[content.index(b"__metadata__") + 25] ^= 1
    else:
        content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=f"{path.name} is damaged .*: delete it and prepare again"):
        [TensorStore(tmp_path).get(name) for name in "ab"]


@pytest.mark.hostile("stale stores")
def test_a_damaged_store_ends_a_run_and_is_made_again_once_it_is_deleted(own):
    make, data = own
    whole = weights(train_adapter(make("whole")))
    for kind in ("latents", "encodings"):
        [path] = (data.parent / "store" / kind).glob("*/*.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptWeightsError, match="differs from its SHA-256"):
            train_adapter(make(kind))
        path.unlink()
    again = weights(train_adapter(make("again")))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.hostile("stale stores")
def test_a_damaged_check_of_samples_is_made_again(own):
    make, data = own
    settings = make()
    pipe = load_parts(settings, CPU).pipe
    [place] = (data.parent / "store" / "samples").glob("*/good.safetensors")
    content = bytearray(place.read_bytes())
    content[-40] ^= 1
    place.write_bytes(content)
    samples = load_samples(settings, pipe)
    assert [samples.load(index, np.random.default_rng(0))[1] for index in range(12)]


def test_stores_of_an_earlier_version_are_named_once_and_not_read(tiny_llm, tmp_path, caplog):
    old = tmp_path / "encodings" / ("0" * 32)
    old.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, old / "b.safetensors")
    context = ContextEncoding(tiny_llm.num_blocks, tiny_llm.hidden_size)
    EncodingCache(tmp_path, tiny_llm, context).fill(["a cat"])
    EncodingCache(tmp_path, tiny_llm, context)
    assert caplog.text.count(f"not read any more; delete: {old}") == 1


def test_what_killed_writers_left_is_swept(tmp_path):
    old, new = tmp_path / ".a.1.partial", tmp_path / ".b.2.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    TensorStore(tmp_path)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


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
        pytest.raises(LLMDiffError, match="a run which has not ended yet"),
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
