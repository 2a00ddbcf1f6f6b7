"""The build on the `test` preset: every stage runs, is skipped when done, stops, moves and ships."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny.pipelines import build_llm

from llmdiff.adapter.manifest import check_manifest
from llmdiff.controller import LLMController
from llmdiff.drawing.draw import prompt_notice
from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.training.checkpoint import load_checkpoint
from llmdiff.world.packaged import world_of
from llmdiff.world.rendering import sprite_box
from llmdiff.world.splits import held_out_parts, sample_portrait, sample_scene, training_caption
from llmdiff_lab.world_build.build import STAGES, Build
from llmdiff_lab.world_build.pack import PART_BYTES, pack, unpack
from llmdiff_lab.world_build.presets import find_preset
from llmdiff_lab.world_build.scenes import token_ids
from llmdiff_lab.world_build.ship import ship
from llmdiff_lab.world_build.slices import run_build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The test preset with a tiny LLM: SmolLM2 reads its captions in minutes."""
    llm, folder = build_llm(), tmp_path_factory.mktemp("llm")
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return find_preset("test", llm=str(folder))


@pytest.fixture(scope="module")
def built(tmp_path_factory, preset):
    with Build(preset, tmp_path_factory.mktemp("build"), CPU) as build:
        build.run()
        yield build


def copied(built, tmp_path: Path, *stages: str) -> Path:
    """Return a build that has only these stages of another one."""
    for stage in (*stages, "tokenizer"):
        shutil.copytree(built.folder / stage, tmp_path / "copy" / stage)
    return tmp_path / "copy"


def test_every_stage_leaves_its_record(built):
    for stage in STAGES:
        assert json.loads((built.folder / stage / "done.json").read_text())["preset"]["name"] == "test"
    for stage in ("vae", "text", "denoiser", "decoder", "checker", "siglip", "adapter"):
        assert (built.folder / stage / "loss.png").stat().st_size > 1000
    assert list((built.folder / "denoiser" / "samples").glob("*.png"))


def test_the_pipeline_is_plain_stable_diffusion(built):
    folder = built.folder / "denoiser" / "pipeline"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat left of a dog", num_inference_steps=2).images[0].size == (128, 128)


def test_a_second_run_changes_no_file(built):
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob("*") if path.is_file()}
    with Build(built.preset, built.folder, CPU) as again:
        again.run()
    assert before == {path: path.stat().st_mtime_ns for path in built.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("stage", "value"),
    [("vae", "vae_steps"), ("text", "text_lr"), ("scenes", "captions_each"), ("latents", "seed"),
     ("denoiser", "unet_lr"), ("decoder", "decoder_lr"),
     ("checker", "checker_steps")],
)  # fmt: skip
def test_a_stage_made_with_other_values_is_refused_by_name(built, stage, value):
    changed = replace(built.preset, **{value: getattr(built.preset, value) * 2 + 1})
    with pytest.raises(ConfigError, match=rf"{stage} was made with {value} .*delete that folder"):
        getattr(Build(changed, built.folder, CPU), stage)()


def test_latents_have_unit_variance_and_are_those_of_the_scenes(built):
    latents, scenes = built.latents(), built.scenes()
    assert len(latents) == built.preset.scenes < len(scenes) == built.preset.text_scenes
    assert latents.float().std().item() == pytest.approx(1, abs=0.2)


def test_portraits_have_one_thing_and_a_quarter_of_the_latents(built):
    preset, latents, portraits = built.preset, built.latents("portraits"), built.scenes(view="portraits")
    full = built.latents().shape[-1]
    assert latents.shape == (preset.portraits, preset.vae_latent_channels, full // 2, full // 2)
    assert len(portraits) == preset.portraits
    for index in range(preset.portraits):
        scene = sample_portrait(preset.seed, index, preset.world)
        assert len(scene.things) == 1
        assert not scene.place
        assert not held_out_parts(scene)
        # About as many pixels as in a scene of twice the side.
        assert (
            0.5 < sprite_box(scene.things[0], preset.image_size_px // 2)[2] / (preset.image_size_px / 2) <= 1
        )


def test_a_build_computes_in_bfloat16_only_where_that_is_faster(preset, tmp_path):
    build = Build(replace(preset, precision="bf16"), tmp_path / "build", CPU)
    can = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" not in can:
        pytest.skip("this system does not list the flags of its CPU")
    fast = any(flag in can.split() for flag in ("avx512_bf16", "amx_bf16"))
    assert build.preset.precision == ("bf16" if fast else "no")


def test_token_ids_are_those_of_the_pipelines_own_tokenizer(built):
    world, tokenizer = built.preset.world, built.tokenizer()
    texts = [training_caption(sample_scene(1, i, world), 1, i).text for i in range(40)] + [
        "",
        "a Zebra's café",
    ]
    expected = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    found = token_ids(built.folder / "tokenizer" / "tokenizer.json", texts, built.preset.text_max_tokens)
    assert np.array_equal(found, expected)


def test_scenes_hold_the_captions_of_their_scenes(built):
    scenes, preset = built.scenes(), built.preset
    for index in (0, 7, 63, 95):
        scene = sample_scene(preset.seed, index, preset.world)
        for which in range(preset.captions_each):
            text = training_caption(scene, preset.seed, index * preset.captions_each + which, "plain").text
            assert built.tokenizer().decode(scenes.ids[index, which], skip_special_tokens=True).split() == (
                built.tokenizer().decode(built.tokenizer()(text).input_ids, skip_special_tokens=True).split()
            )


def test_a_build_stops_between_stages_and_goes_on(built, tmp_path):
    folder, calls = copied(built, tmp_path, "vae"), []

    def stopped() -> bool:
        calls.append(None)
        return len(calls) > 2  # before the third stage

    with Build(built.preset, folder, CPU, stopped=stopped) as build, pytest.raises(SystemExit):
        build.run()
    assert (folder / "scenes" / "done.json").exists()
    assert not (folder / "text").exists()
    with Build(built.preset, folder, CPU) as build:
        build.run("text")
    weights = load_checkpoint(folder / "text")[1]
    for name, value in load_checkpoint(built.folder / "text")[1].items():
        assert torch.equal(weights[name], value), name


def test_when_the_time_is_up_a_training_saves_and_stops(built, tmp_path, monkeypatch):
    folder = copied(built, tmp_path, "scenes")
    long = replace(built.preset, text_steps=1_000_000)
    monkeypatch.setattr("llmdiff_lab.world_build.slices.find_preset", lambda name: long)
    with pytest.raises(SystemExit) as stop:
        run_build("test", folder, only="text", minutes=0.05, pack_to=tmp_path / "packed", device="cpu")
    assert stop.value.code == 0
    state, tensors = load_checkpoint(folder / "text")
    assert state["step"] > 0
    # What was packed goes on from the same step, with its averages as weights.
    unpack(tmp_path / "packed", tmp_path / "elsewhere")
    moved_state, moved = load_checkpoint(tmp_path / "elsewhere" / "text")
    assert moved_state["step"] == state["step"]
    for name, value in tensors.items():
        if name.startswith("ema."):
            assert torch.equal(moved[name], value.half().float())
            assert torch.equal(moved[name.replace("ema.", "weights.")], moved[name])
    shorter = replace(long, text_steps=state["step"] + 1)
    with Build(shorter, tmp_path / "elsewhere", CPU) as build:
        build.text()
    assert load_checkpoint(tmp_path / "elsewhere" / "text")[0]["step"] == state["step"] + 1


def test_a_packed_build_is_whole_elsewhere(built, tmp_path):
    files = pack(built.folder, tmp_path / "packed", STAGES)
    assert all(path.stat().st_size <= PART_BYTES for path in files)
    unpack(tmp_path / "packed", tmp_path / "elsewhere")
    with Build(built.preset, tmp_path / "elsewhere", CPU) as build:
        unet = build.pipeline().unet.state_dict()
        assert {value.dtype for value in unet.values()} == {torch.float32}
        for name, value in built.pipeline().unet.state_dict().items():
            assert torch.equal(unet[name], value.half().float()), name
        assert build.vae().config.scaling_factor == built.vae().config.scaling_factor
        assert torch.equal(build.scenes().maps, built.scenes().maps)  # made again, the same


def test_a_state_that_is_incomplete_or_would_overwrite_is_refused(built, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no part of a state"):
        unpack(tmp_path, tmp_path / "elsewhere")
    monkeypatch.setattr("llmdiff_lab.world_build.pack.PART_BYTES", 200_000)
    files = pack(built.folder, tmp_path / "packed", STAGES)
    assert len(files) > 2
    with pytest.raises(ConfigError, match="has a build already"):
        unpack(tmp_path / "packed", built.folder)
    files[-1].unlink()
    with pytest.raises(ConfigError, match="incomplete or damaged"):
        unpack(tmp_path / "packed", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    files[0].unlink()
    with pytest.raises(ConfigError, match=r"expected state-00\.bin"):
        unpack(tmp_path / "packed", tmp_path / "elsewhere")
    monkeypatch.setattr("llmdiff_lab.world_build.pack.MAX_BYTES", 1000)
    with pytest.raises(LLMDiffError, match="can be carried"):
        pack(built.folder, tmp_path / "too large", STAGES)
    assert not (tmp_path / "too large").exists()


def test_what_ships_says_what_it_knows_and_is_whole(built, tmp_path):
    size = ship(built.pipeline(), built.folder, tmp_path / "weights", built.preset)
    assert 0 < size < 96_000_000
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "128 x 128" in card
    assert "20 things" in card
    assert "| pipeline/unet |" in card
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "weights" / "LICENSE").read_text()
    assert str(built.folder) not in "".join(
        path.read_text() for path in (tmp_path / "weights").rglob("*.json")
    )
    check_manifest(tmp_path / "weights" / "pipeline", ["model_index.json", "world.json"])
    assert world_of(tmp_path / "weights" / "pipeline") == built.preset.world
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "weights" / "pipeline", torch_dtype=torch.float32
    )
    assert prompt_notice(pipe, "a cat") is None
    assert "llmdiff world" in prompt_notice(pipe, "a submarine")
    assert prompt_notice(built.pipeline(), "a submarine") is None  # its folder names no world


def test_options_that_cannot_work_are_refused_by_name(tmp_path):
    for options, message in (
        ({"until": "films"}, "--until: got 'films'"),
        ({"only": "films"}, "--only: got 'films'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_build("test", tmp_path / "build", device="cpu", **options)
    with pytest.raises(ConfigError, match="--fluent: got none"):
        run_build("gpu", tmp_path / "build", device="cpu")
    with pytest.raises(ConfigError, match="'cpus'"):
        find_preset("cpus")
    with pytest.raises(ConfigError, match="unet_step"):
        find_preset("cpu", unet_step=3)
    assert not (tmp_path / "build").exists()


def test_a_build_begins_from_shipped_weights_and_trains_the_base_on(built, tmp_path):
    ship(built.pipeline(), built.folder, tmp_path / "weights", built.preset)
    with Build(built.preset, tmp_path / "begun", CPU) as begun:
        begun.begin_from(tmp_path / "weights")
        trained = built.denoiser().unet.state_dict()
        for name, value in begun.denoiser().unet.state_dict().items():
            assert torch.equal(value, trained[name].half().float()), name
        begun.run("siglip")  # nothing is left to make
        assert not list((tmp_path / "begun").rglob("log.jsonl"))
        assert not (tmp_path / "begun" / "latents").exists()
        pipe = begun.pipeline()
        before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        begun.train_longer(pipe, tmp_path / "longer", steps=2, batch=4, seed=1)
        assert any(not torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
        # On the adapters' captions, which are not the base's own.
        rich, plain = begun.scenes("rich"), begun.scenes()
        assert len(rich) == built.preset.scenes
        assert torch.equal(rich.maps, plain.maps[: len(rich)])
        assert not torch.equal(rich.ids, plain.ids[: len(rich)])
    other = replace(built.preset, things=21)
    with pytest.raises(
        ConfigError, match=r"got models of World\(thing_count=20.*expected World\(thing_count=21"
    ):
        Build(other, tmp_path / "other", CPU).begin_from(tmp_path / "weights")


def test_one_stage_alone_trains_only_what_it_takes_something_from(tmp_path):
    run_build("test", tmp_path, only="siglip", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["siglip", "tokenizer"]
    record = json.loads((tmp_path / "siglip" / "done.json").read_text())
    assert 0 <= record["held_out"]["near_miss"] <= 1


BEGIN = """
import sys
from pathlib import Path
from llmdiff_lab.world_build.slices import run_build

run_build("test", Path(sys.argv[1]), begin=sys.argv[2], until="vae", device="cpu")
"""


def test_processes_that_begin_the_same_build_do_not_disturb_each_other(built, tmp_path):
    ship(built.pipeline(), built.folder, tmp_path / "weights", built.preset)
    command = [sys.executable, "-c", BEGIN, tmp_path / "begun", tmp_path / "weights"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [one.communicate(timeout=240)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], errors
    begun = {path.name for path in (tmp_path / "begun").iterdir()}
    assert begun == {"vae", "text", "denoiser", "decoder", "checker", "siglip", "tokenizer"}
    assert not list((tmp_path / "begun").rglob(".*"))


def test_what_ships_can_be_drawn_with(built, tmp_path):
    ship(built.pipeline(), built.folder, tmp_path / "weights", built.preset)
    for part in ("pipeline", "adapter", "checker", "siglip"):
        check_manifest(tmp_path / "weights" / part, [])
    controller = LLMController.from_pretrained(tmp_path / "weights" / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "weights" / "pipeline", torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    with controller.attached(pipe):
        assert pipe("a car", num_inference_steps=2).images[0].size == (128, 128)


def test_the_adapter_stage_trains_only_the_adapter(built):
    adapter = built.adapter()
    assert adapter.context.score_scale.min() > 0
    assert not torch.equal(adapter.context.gamma, torch.ones_like(adapter.context.gamma))
    assert len(adapter.refiner.blocks) == built.preset.adapter_refiner_layers
    assert adapter.refiner.to_outside.weight.any()
    fresh = StableDiffusionPipeline.from_pretrained(built.folder / "denoiser" / "pipeline")
    trained_on = built.pipeline().unet.state_dict()
    for name, value in fresh.unet.state_dict().items():
        assert torch.equal(value, trained_on[name]), name
