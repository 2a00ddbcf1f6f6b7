"""An adapter trained from captions alone, without a picture: for Stable Diffusion and SDXL, through the commands."""

import json

import numpy as np
import pytest
import torch
import yaml
from closed_endpoint import Endpoint, says
from safetensors.torch import load_file
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.training.captions import captions_source, read_captions
from llmdiff.training.config import load_config
from llmdiff.training.log import read_log
from llmdiff.training.plain_wording import llm_rewords
from llmdiff.training.trainer import train_adapter

PAIRS = [
    {"text": "the cat that is red", "plain": "a red cat"},
    {"text": "two of the blue dog", "plain": "two blue dog"},
    {"captions": ["on the left an apple", "an apple, left"], "plain": ["a left apple", "a left apple"]},
    {"text": "a car in green"},
]


@pytest.fixture
def captions_only(config, tmp_path):
    """A function that writes a configuration of a training from captions alone, and returns its path."""

    def make(base="sd", pairs=PAIRS, **changes):
        (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in pairs))
        training = {"training__steps": 0, "training__warm_start_steps": 4, "watch__validation_samples": None}
        settings = config(base=base, **{"training__steps": 4})
        found = settings.model_dump(mode="json")
        found["data"] = {"kind": "captions", "path": str(tmp_path / "pairs.jsonl"), "resolution_px": 32}
        for name, value in (training | changes).items():
            section, key = name.split("__")
            found[section][key] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(found))
        return path

    return make


@pytest.mark.parametrize("base", ["sd", "sdxl"])
def test_prepare_train_and_draw_without_a_picture(captions_only, models, tmp_path, base):
    path = captions_only(base)
    for verb in ("prepare", "train"):
        told = CliRunner().invoke(app, [verb, str(path)])
        assert told.exit_code == 0, told.output
    assert (tmp_path / "run" / "samples" / "step-00000004.png").is_file()
    assert not (tmp_path / "store" / "latents").exists()
    assert not list((tmp_path / "run").glob("checkpoints"))
    lines = read_log(tmp_path / "run" / "warm-start" / "log.jsonl")
    assert ("unexplained_pooled" in lines[0]) == (base == "sdxl")
    controller = LLMController.from_pretrained(tmp_path / "run" / "adapter")
    pipe = controller.load_pipeline()
    with controller.attached(pipe):
        assert np.isfinite(pipe("a cat", num_inference_steps=1, output_type="np").images).all()
    again = CliRunner().invoke(app, ["train", str(path)])
    assert again.exit_code == 0, again.output


def test_the_adapter_learns_to_give_for_free_wordings_what_the_base_gives_for_plain_ones(
    captions_only, tmp_path
):
    changes = {"training__warm_start_steps": 60, "training__learning_rate": 1e-2, "training__log_every": 10}
    config = load_config(captions_only(**changes, training__batch_size=4, watch__prompts=[]), [])
    train_adapter(config)
    lines = read_log(tmp_path / "run" / "warm-start" / "log.jsonl")
    assert lines[-1]["unexplained"] < 0.5 * lines[0]["unexplained"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gains_first_are_learned_from_captions_too(captions_only, tmp_path, precision):
    path = captions_only(
        training__gains="first", training__gain_steps=2, training__precision=precision, watch__prompts=[]
    )
    train_adapter(load_config(path, []))
    learned = load_file(next((tmp_path / "run" / "adapter").glob("*.safetensors")))
    assert len(learned["context.gamma"].unique()) > 1


def test_a_stopped_run_goes_on_to_the_same_bits(captions_only, monkeypatch, interrupt, tmp_path):
    from llmdiff.training import loop

    path = captions_only(watch__prompts=[])
    whole = load_file(
        next(train_adapter(load_config(path, ["out=" + str(tmp_path / "whole")])).glob("*.safetensors"))
    )
    interrupt(3, loop, "lr_factor")
    with pytest.raises(KeyboardInterrupt):
        train_adapter(load_config(path, []))
    monkeypatch.undo()
    again = load_file(next(train_adapter(load_config(path, [])).glob("*.safetensors")))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_plan_counts_steps_without_a_denoiser(captions_only):
    told = CliRunner().invoke(app, ["plan", str(captions_only()), "--json"])
    assert told.exit_code == 0, told.output
    plan = json.loads(told.output)
    assert set(plan["step_flops"]) == {"text attention"}
    with_pictures = ["data.kind=folder", "training.steps=4", "data.store_latents=true"]
    other = json.loads(
        CliRunner().invoke(app, ["plan", str(captions_only()), *with_pictures, "--json"]).output
    )
    assert plan["step_flops"]["text attention"] < other["step_flops"]["denoiser"]
    measured = CliRunner().invoke(app, ["plan", str(captions_only()), "training.batch_size=4", "--measure"])
    assert "measured on the CPU, 10 steps of one process" in measured.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steps=3", "data.kind captions has no pictures: set training.steps to 0"),
        ("training.warm_start_steps=0", "steps is 0, and warm_start_steps too"),
        ("data.store_latents=true", "captions have no pictures to store latents of"),
        ("watch.validation_samples=1", "validation is on pictures: leave validation_samples out"),
        ("data.path=/nowhere.jsonl", "/nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(captions_only, change, message):
    told = CliRunner().invoke(app, ["train", str(captions_only()), change])
    assert told.exit_code == 1
    assert message in told.output
    assert told.output.splitlines()[-1].startswith("error: ")


def test_captions_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\na dog\n")
    (tmp_path / "a.csv").write_text('text,plain\n"a cat, small",a cat\na dog,a dog\n')
    (tmp_path / "a.jsonl").write_text('{"text": "a cat"}\n[1]\n{"text": "x", "plain": ["y", "z"]}\n')
    assert read_captions(tmp_path / "a.txt") == ["a cat", "a dog"]
    row = captions_source(tmp_path / "a.csv", side_px=32).row(0)
    assert (row.texts, row.plain_texts, row.size_px) == (["a cat, small"], ["a cat"], (32, 32))
    source = captions_source(tmp_path / "a.jsonl", side_px=32)
    assert [source.row(index).problem for index in range(3)] == [None, "not a JSON object", None]


def test_reword_asks_a_closed_llm_once_for_each_caption_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    (tmp_path / "free.txt").write_text("the cat that is red\na dog, and it is blue\n")
    endpoint = Endpoint(says("a red cat"), says("a blue dog"), says("three apples"))
    try:
        asked = ["reword", str(tmp_path / "free.txt"), "--out", str(tmp_path / "pairs.jsonl")]
        asked += ["--reword-url", endpoint.url, "--reword-model", "m"]
        told = CliRunner().invoke(app, asked)
        assert told.exit_code == 0, told.output
        with (tmp_path / "pairs.jsonl").open("a") as file:
            file.write('{"text": "cut o')
        (tmp_path / "free.txt").write_text("the cat that is red\nthree of the apple\n")
        told = CliRunner().invoke(app, asked)
        assert told.exit_code == 0, told.output
    finally:
        endpoint.close()
    assert len(endpoint.requests) == 3
    source = captions_source(tmp_path / "pairs.jsonl", side_px=32)
    found = [(source.row(i).texts[0], source.row(i).plain_texts[0]) for i in range(len(source))]
    assert found == [
        ("the cat that is red", "a red cat"),
        ("a dog, and it is blue", "a blue dog"),
        ("three of the apple", "three apples"),
    ]


def test_reword_needs_one_of_both_llms(tmp_path):
    (tmp_path / "free.txt").write_text("a cat\n")
    told = CliRunner().invoke(app, ["reword", str(tmp_path / "free.txt"), "--out", str(tmp_path / "p.jsonl")])
    assert told.exit_code == 1
    assert "expected one of the two" in told.output


def test_the_llm_itself_writes_what_it_finds_likeliest(tiny_llm):
    answer = llm_rewords(tiny_llm)("a red cat")
    ids = tiny_llm.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert ids
    assert answer == llm_rewords(tiny_llm)("a red cat")
