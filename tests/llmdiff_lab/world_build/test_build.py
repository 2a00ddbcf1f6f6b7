"""The whole build on the `test` preset: every stage runs, is skipped when done, and resumes."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.manifest import check_manifest
from llmdiff.adapter.refiner import LAYERS
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff_lab.world_build.build import Build, run_build
from llmdiff_lab.world_build.presets import preset
from llmdiff_lab.world_build.ship import ship


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    build = Build(preset("openmoji-test"), folder, torch.device("cpu"))
    build.run("denoiser")
    return build


def test_every_stage_leaves_its_record(built):
    for stage in ("vae", "scenes", "text", "denoiser"):
        record = json.loads((built.folder / stage / "done.json").read_text())
        assert record["preset"]["name"] == "openmoji-test"
    assert "held_out_psnr_db" in json.loads((built.folder / "vae" / "done.json").read_text())
    for stage in ("vae", "text", "denoiser"):
        assert (built.folder / stage / "loss.png").stat().st_size > 1000
    assert list((built.folder / "denoiser" / "samples").glob("*.png"))


def test_the_pipeline_is_plain_stable_diffusion(built):
    folder = built.folder / "denoiser" / "pipeline"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert not list(folder.rglob("*.bin"))
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a car left of a plane", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_a_second_run_trains_nothing(built):
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob("*") if path.is_file()}
    Build(built.preset, built.folder, torch.device("cpu")).run("denoiser")
    after = {path: path.stat().st_mtime_ns for path in built.folder.rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.parametrize("value", ["vae_steps", "unet_lr", "seed", "scenes"])
def test_a_stage_made_with_other_values_is_refused_by_name(built, value):
    changed = replace(built.preset, **{value: getattr(built.preset, value) * 2 + 1})
    with pytest.raises(ConfigError, match=rf"was made with {value} .*delete that folder"):
        Build(changed, built.folder, torch.device("cpu")).run("denoiser")


def test_values_of_stages_that_are_not_done_may_change(built):
    Build(replace(built.preset, adapter_steps=9, checker_steps=7), built.folder, torch.device("cpu")).run(
        "denoiser"
    )


def test_latents_have_unit_variance(built):
    latents = built.scenes().latents.float()
    assert latents.std().item() == pytest.approx(1, abs=0.2)


def test_unknown_presets_and_values_are_errors_by_name():
    with pytest.raises(ConfigError, match="'cpus'"):
        preset("cpus")
    with pytest.raises(ConfigError, match="unet_step"):
        preset("openmoji-cpu", unet_step=3)


@pytest.fixture
def whole(built, make_llm):
    """The same build with its adapter, on a tiny LLM."""
    folder = built.folder.with_name("llm-of-the-build")
    llm = make_llm()
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    build = Build(replace(built.preset, llm=str(folder)), built.folder, torch.device("cpu"))
    build.run()
    return build


def test_the_adapter_stage_trains_only_the_adapter(whole):
    adapter = whole.adapter()
    assert isinstance(adapter, LLMDiffAdapter)
    assert adapter.context.score_scale.min() > 0
    assert not torch.equal(adapter.context.gamma, torch.ones_like(adapter.context.gamma))
    assert len(adapter.refiner.blocks) == whole.preset.adapter_refiner_layers == LAYERS
    assert adapter.refiner.to_outside.weight.any()
    fresh = StableDiffusionPipeline.from_pretrained(whole.folder / "denoiser" / "pipeline")
    trained_on = whole.pipeline()
    for name, value in fresh.unet.state_dict().items():
        assert torch.equal(value, trained_on.unet.state_dict()[name]), name


def test_what_ships_can_be_drawn_with(whole, tmp_path):
    parts = whole.pipeline(), whole.adapter(), whole.checker()
    size = ship(*parts, tmp_path / "weights", preset=whole.preset, siglip=whole.siglip())
    assert 0 < size < 40_000_000
    assert "| siglip |" in (tmp_path / "weights" / "README.md").read_text()
    text = "".join(path.read_text() for path in (tmp_path / "weights").rglob("*.json"))
    assert str(whole.folder) not in text
    for part, file in {
        "pipeline": "model_index.json",
        "adapter": "config.json",
        "checker": "config.json",
    }.items():
        check_manifest(tmp_path / "weights" / part, [file])
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "weights" / "LICENSE").read_text()
    controller = LLMController.from_pretrained(tmp_path / "weights" / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "weights" / "pipeline", torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    with controller.attached(pipe):
        assert pipe("a car", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)


def test_a_build_begins_from_shipped_weights(whole, tmp_path):
    parts = whole.pipeline(), whole.adapter(), whole.checker()
    ship(*parts, tmp_path / "weights", preset=whole.preset, siglip=whole.siglip())
    begun = Build(whole.preset, tmp_path / "begun", torch.device("cpu"))
    begun.begin_from(tmp_path / "weights")
    trained = whole.denoiser().unet.state_dict()
    for name, value in begun.denoiser().unet.state_dict().items():
        assert torch.equal(value, trained[name].half().float()), name
    assert begun.tokenizer()("a car").input_ids == whole.tokenizer()("a car").input_ids
    assert begun.pipeline().text_encoder.dtype == torch.float32  # as the adapter's stage needs it
    begun.run("checker")  # only the scenes are left to make
    begun.siglip()
    assert not list((tmp_path / "begun").rglob("log.jsonl"))
    assert len(begun.scenes().contents) == whole.preset.scenes


def test_one_stage_alone_trains_only_what_it_takes_something_from(tmp_path):
    run_build("openmoji-test", tmp_path, only="siglip", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["siglip", "tokenizer"]
    record = json.loads((tmp_path / "siglip" / "done.json").read_text())
    assert 0 <= record["held_out"]["near_miss"] <= 1
