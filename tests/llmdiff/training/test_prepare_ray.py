"""`llmdiff prepare --workers 2`, here or with Ray, fills the store that `llmdiff prepare` fills, bit for bit."""

import pytest
import torch
import yaml
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.errors import ConfigError
from llmdiff.language import cache
from llmdiff.language.encoding import ContextEncoding
from llmdiff.training import prepare as preparing
from llmdiff.training.prepare import (
    caption_store,
    captions_to_read,
    fill_latents,
    latent_store,
    load_models,
    missing_latents,
    prepare,
)
from llmdiff.training.prepare_ray import StoreFiller


def _stores(settings, parts):
    return caption_store(settings, parts.llm, parts.context).store, latent_store(
        settings, parts.pipe.vae, parts.samples
    )


def _all(store):
    return {name: store.get(name) for name in sorted(store._place)}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "_CHUNK", 2)
    monkeypatch.setattr(preparing, "LATENT_CHUNK", 5)
    monkeypatch.setattr("llmdiff.training.prepare_ray.LATENT_CHUNK", 5)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["processes", "ray"])
def engine(request):
    if request.param:
        request.getfixturevalue("ray_cluster")
        return ["--ray"]
    return []


@pytest.mark.timeout(1500)
def test_two_workers_fill_the_store_as_one_process_does(config, tmp_path, engine, small_chunks):
    alone = config("alone").model_copy(update={"store": tmp_path / "alone-store"})
    shared = config("shared").model_copy(update={"store": tmp_path / "shared-store"})
    parts = load_models(alone, torch.device("cpu"))
    assert prepare(alone, parts) == {"captions": 4, "pictures": 12}
    # One part of each is there already, as a run that was killed leaves it.
    latents = _stores(shared, parts)[1]
    encodings = caption_store(shared, parts.llm, parts.context)
    encodings.fill(encodings.missing_chunks(captions_to_read(shared, parts.samples))[0])
    fill_latents(latents, parts.pipe.vae, parts.samples, missing_latents(latents, parts.samples)[:5])
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(shared.model_dump(mode="json")))
    ran = CliRunner().invoke(app, ["prepare", str(path), *engine, "--workers", "2"])
    assert ran.exit_code == 0, ran.output
    assert "12 good samples, 0 in quarantine" in ran.output
    assert "2 captions, 7 pictures" in ran.output
    for one, other in zip(_stores(alone, parts), _stores(shared, parts), strict=True):
        one, other = _all(one), _all(other)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / "shared-store" / "latents").rglob("*.safetensors"))) == 3


def test_a_worker_whose_llm_is_another_one_is_refused(config, make_llm, tmp_path):
    settings = config()
    parts = load_models(settings, torch.device("cpu"))
    context = parts.adapter.context
    other = ContextEncoding(context.num_blocks, context.hidden_size, clip=2.0)
    other.load_state_dict(context.state_dict())
    filler = StoreFiller(settings, {"captions": caption_store(settings, parts.llm, context).key}, other)
    with pytest.raises(ConfigError, match=r"different captions than this machine's"):
        filler({"captions": ["a cat"]})
    assert not list((tmp_path / "store" / "encodings").rglob("*.safetensors"))
