"""Nothing stale is trained on: changed pictures, models and captions are noticed, and damage is named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llmdiff.errors import CorruptWeightsError, DataError
from llmdiff.language.cache import encoding_key
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.prepare import latent_store, load_models, load_samples, missing_latents, prepare
from llmdiff.training.trainer import train_adapter

from .odd_samples import paint

CPU = torch.device("cpu")


@pytest.fixture
def own(models, tmp_path, config):
    """A configuration over a copy of the pictures, and that copy's folder."""
    shutil.copytree(models / "data", tmp_path / "data")

    def make(out="run", **changes):
        return config(out, data__path=str(tmp_path / "data"), watch__prompts=[], **changes)

    return make, tmp_path / "data"


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
    parts = load_models(settings, CPU)
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
    parts = load_models(settings, CPU)
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
    samples = load_samples(settings, load_models(settings, CPU).pipe)
    content = (data / "04.png").read_bytes()
    stamp = (data / "04.png").stat()
    if gone:
        (data / "04.png").unlink()
    else:
        (data / "04.png").write_bytes(content[:40] + bytes(len(content) - 40))
        os.utime(data / "04.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DataError, match=r"has changed since it was checked.*prepare again"):
        samples.load(4, np.random.default_rng(0))
    again = load_samples(make(data__max_bad_share=1.0), load_models(make(data__max_bad_share=1.0), CPU).pipe)
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
    parts = load_models(settings, CPU)
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
    pipe = load_models(settings, CPU).pipe
    [place] = (data.parent / "store" / "samples").glob("*/good.safetensors")
    content = bytearray(place.read_bytes())
    content[-40] ^= 1
    place.write_bytes(content)
    samples = load_samples(settings, pipe)
    assert [samples.load(index, np.random.default_rng(0))[1] for index in range(12)]


def test_what_killed_writers_left_is_swept(tmp_path):
    old, new = tmp_path / ".a.1.partial", tmp_path / ".b.2.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    TensorStore(tmp_path)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it
