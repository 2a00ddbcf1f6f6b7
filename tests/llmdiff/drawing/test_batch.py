"""`llmdiff batch`: many prompts, each drawn once, by one process or by two."""

import shutil

import numpy as np
import pytest
from closed_endpoint import Endpoint, says
from PIL import Image
from typer.testing import CliRunner

from llmdiff.adapter import LLMDiffAdapter
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.drawing.batch import draw_prompts, read_prompts
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.models import Models
from llmdiff.drawing.pictures import read_metadata, save_png
from llmdiff.errors import InputFileError, PromptError
from llmdiff.language.llm import DecoderLLM


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder of a tiny adapter; its LLM and pipeline lie beside it."""
    from tiny.pipelines import build_llm, build_sd

    folder = tmp_path_factory.mktemp("models")
    pipe, llm = build_sd(), build_llm()
    pipe.save_pretrained(folder / "pipe")
    llm.model.save_pretrained(folder / "llm")
    llm.tokenizer.save_pretrained(folder / "llm")
    loaded = DecoderLLM.from_pretrained(folder / "llm")
    LLMController.create(loaded, pipe, base_model_id=str(folder / "pipe")).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture
def batch(adapter, tmp_path):
    """A function that runs the command on three prompts and returns what it printed."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\n\n  two dog \na car\n")

    def run(out, *more):
        command = ["batch", str(prompts), "--out", str(tmp_path / out), "--steps", "2", "--seed", "5"]
        ran = CliRunner().invoke(app, [*command, "--adapter", str(adapter), "--device", "cpu", *more])
        assert ran.exit_code == 0, ran.output
        return [line for line in ran.stdout.splitlines() if line.endswith(".png")]

    return run


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_every_prompt_is_drawn_and_only_once(batch, tmp_path):
    drawn = batch("a")
    assert [path.rpartition("/")[2] for path in drawn] == ["000000.png", "000001.png", "000002.png"]
    told = read_metadata(tmp_path / "a" / "000001.png")
    assert (told["prompt"], told["seed"], told["steps"]) == ("two dog", "5", "2")
    assert batch("a") == []
    # What is gone, damaged or of other settings is drawn anew.
    before = _pixels(tmp_path / "a" / "000002.png")
    (tmp_path / "a" / "000000.png").unlink()
    (tmp_path / "a" / "000002.png").write_bytes(b"half a pict")
    assert [path[-10:] for path in batch("a")] == ["000000.png", "000002.png"]
    assert np.array_equal(before, _pixels(tmp_path / "a" / "000002.png"))
    assert len(batch("a", "--guidance-scale", "2")) == 3
    assert len(batch("a", "--guidance-scale", "2", "--number", "2")) == 6


def test_another_size_on_saving_is_drawn_anew_and_the_same_is_not(batch, tmp_path):
    batch("a")
    small = _pixels(tmp_path / "a" / "000000.png")
    enlarge = ("--save-size", str(4 * small.shape[0]), "--save-filter", "nearest")
    assert len(batch("a", *enlarge, "--height", str(small.shape[0]))) == 3
    assert np.array_equal(_pixels(tmp_path / "a" / "000000.png"), small.repeat(4, 0).repeat(4, 1))
    assert batch("a", *enlarge, "--height", str(small.shape[0])) == []
    assert len(batch("a", *enlarge[:2])) == 3
    assert len(batch("a")) == 3


def test_a_picture_of_another_scale_is_drawn_anew(batch, adapter, tmp_path):
    batch("a")
    assert read_metadata(tmp_path / "a" / "000000.png")["scale"] == "1.0"
    assert batch("a", "--scale", "1") == []
    assert len(batch("a", "--scale", "0.5")) == 3
    assert len(batch("a")) == 3
    own = LLMDiffAdapter.from_pretrained(adapter)
    own.register_to_config(scale=0.5)
    own.save_pretrained(adapter)
    try:
        assert len(batch("a")) == 3
        assert read_metadata(tmp_path / "a" / "000000.png")["scale"] == "0.5"
        assert batch("a", "--scale", "0.5") == []
    finally:
        own.register_to_config(scale=1.0)
        own.save_pretrained(adapter)


def test_half_precision_is_other_pictures_that_say_so(batch, tmp_path):
    batch("full")
    assert len(batch("full", "--dtype", "bfloat16")) == 3  # drawn anew
    assert read_metadata(tmp_path / "full" / "000000.png")["dtype"] == "bfloat16"
    assert batch("full", "--dtype", "bfloat16") == []


def test_a_closed_llm_is_asked_about_every_prompt_and_the_pictures_say_so(batch, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    endpoint = Endpoint(says("a cat"))
    reword = ("--reword-url", endpoint.url, "--reword-model", "closed-1")
    try:
        assert len(batch("a", *reword)) == 3
        assert sorted(body["messages"][1]["content"] for _, _, body in endpoint.requests) == [
            "a car", "a red cat", "two dog",
        ]  # fmt: skip
        assert read_metadata(tmp_path / "a" / "000001.png")["reword_model"] == "closed-1"
        assert batch("a", *reword) == []
        assert len(batch("a", *reword, "--reword-answers", "2")) == 3  # another way to read them
        told = read_metadata(tmp_path / "a" / "000001.png")
        assert told["reword_answers"] == "2"
        assert len(endpoint.requests) == 3 + 6
        assert batch("a", *reword, "--reword-answers", "2") == []
        assert len(batch("a")) == 3
    finally:
        endpoint.close()


def _other_adapter(folders):
    own = LLMDiffAdapter.from_pretrained(folders / "adapter")
    own.phi.weight.data.mul_(1.01)
    own.save_pretrained(folders / "adapter")


def _other_llm(folders):
    from tiny.pipelines import build_llm

    model = build_llm().model
    model.model.norm.weight.data.mul_(1.01)
    model.save_pretrained(folders / "llm")


def _other_tokenizer(folders):
    from tiny.pipelines import word_tokenizer

    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["bird"])
    tokenizer.save_pretrained(folders / "llm")


def _other_pipeline(folders):
    from tiny.pipelines import build_sd

    pipe = build_sd()
    pipe.vae.decoder.conv_out.bias.data.add_(0.1)
    pipe.save_pretrained(folders / "pipe")


def _other_scheduler(folders):
    from diffusers import DDIMScheduler

    DDIMScheduler(beta_end=0.02, steps_offset=1, clip_sample=False).save_pretrained(
        folders / "pipe" / "scheduler"
    )


@pytest.mark.hostile("stale batches")
@pytest.mark.parametrize(
    "change", [_other_adapter, _other_llm, _other_tokenizer, _other_pipeline, _other_scheduler]
)
def test_pictures_of_models_that_were_changed_in_place_are_drawn_anew(adapter, tmp_path, change):
    for name in ("adapter", "llm", "pipe"):
        shutil.copytree(adapter.parent / name, tmp_path / name)
    own = LLMDiffAdapter.from_pretrained(tmp_path / "adapter")
    own.register_to_config(llm_id=str(tmp_path / "llm"), base_model_id=str(tmp_path / "pipe"))
    own.save_pretrained(tmp_path / "adapter")
    models = Models(adapter=str(tmp_path / "adapter"), device="cpu")
    settings = DrawingSettings(prompt="a", seed=5, steps=1)

    def drawn():
        return [
            path.name for path in draw_prompts(["a red cat", "a dog"], settings, models, tmp_path / "out")
        ]

    assert drawn() == ["000000.png", "000001.png"]
    assert drawn() == []
    change(tmp_path)
    assert drawn() == ["000000.png", "000001.png"]
    assert drawn() == []


@pytest.mark.hostile("stale batches")
@pytest.mark.parametrize(("option", "kind"), [("--llm", "llm"), ("--pipeline", "pipe")])
def test_pictures_of_a_model_that_was_named_the_first_time_only_are_drawn_anew(
    batch, adapter, tmp_path, option, kind
):
    shutil.copytree(adapter.parent / kind, tmp_path / kind)
    # The same models by another name are the same pictures.
    batch("a")
    assert batch("a", option, str(tmp_path / kind)) == []
    {"llm": _other_llm, "pipe": _other_pipeline}[kind](tmp_path)
    assert len(batch("a", option, str(tmp_path / kind))) == 3
    assert len(batch("a")) == 3
    assert batch("a") == []


@pytest.mark.hostile("stale batches")
def test_a_picture_that_does_not_say_which_models_drew_it_is_drawn_anew(batch, tmp_path):
    batch("a")
    path = tmp_path / "a" / "000001.png"
    told = read_metadata(path)
    with Image.open(path) as image:
        save_png(image, path, {key: value for key, value in told.items() if not key.endswith("_sha256")})
    assert [line[-10:] for line in batch("a")] == ["000001.png"]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa red cat\ntwo dog\n",
        b"a red cat\r\ntwo dog\r\n",
        b"a red cat\rtwo dog",
        "\u200ba red cat\n\ufeff\n \u200b \ufeff \u200b\ntwo dog \u200b\n".encode(),
    ],
    ids=["byte-order mark", "CR LF", "CR", "invisible"],
)
def test_prompts_are_read_as_an_editor_shows_them(tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert read_prompts(tmp_path / "prompts.txt") == ["a red cat", "two dog"]


@pytest.mark.hostile("texts")
@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_line_ends_end_a_prompt(tmp_path, char):
    (tmp_path / "prompts.txt").write_bytes(f"a poster: hello{char}world\na dog\n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == [f"a poster: hello{char}world", "a dog"]


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["processes", "ray"])
def engine(request):
    if request.param:
        request.getfixturevalue("ray_cluster")
        return ["--ray"]
    return []


@pytest.mark.timeout(1500)
def test_two_workers_draw_what_one_process_draws(batch, tmp_path, engine):
    batch("alone")
    (tmp_path / "shared").mkdir()
    shutil.copy(tmp_path / "alone" / "000001.png", tmp_path / "shared")  # what a killed run has left
    drawn = batch("shared", *engine, "--workers", "2")
    assert sorted(path[-10:] for path in drawn) == ["000000.png", "000002.png"]
    for name in ("000000.png", "000002.png"):
        assert np.array_equal(_pixels(tmp_path / "alone" / name), _pixels(tmp_path / "shared" / name))


def test_a_file_without_prompts_is_said(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(PromptError, match="has no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(InputFileError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
