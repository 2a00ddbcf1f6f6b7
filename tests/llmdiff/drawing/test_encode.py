"""`llmdiff encode`, and drawing from what it wrote with no LLM and no text encoder in memory."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny.pipelines import build_llm, build_sd
from typer.testing import CliRunner

from llmdiff import LLMController
from llmdiff.cli.main import app
from llmdiff.drawing.models import Models, load
from llmdiff.drawing.pictures import read_metadata
from llmdiff.language.llm import DecoderLLM


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a pipeline, an LLM and an adapter for them, and a file of prompts."""
    pipe, llm = build_sd(), build_llm()
    pipe.save_pretrained(tmp_path / "pipe")
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    loaded = DecoderLLM.from_pretrained(tmp_path / "llm")
    controller = LLMController.create(loaded, pipe, base_model_id=str(tmp_path / "pipe"))
    controller.save_pretrained(tmp_path / "adapter")
    (tmp_path / "prompts.txt").write_text("a red cat\n\n two dog \na red cat\n")
    return tmp_path


def run(models: Path, *words: object, exit_code: int = 0) -> Any:
    command = [str(word) for word in words]
    ran = CliRunner().invoke(app, [*command, "--adapter", str(models / "adapter"), "--device", "cpu"])
    assert ran.exit_code == exit_code, ran.output
    return ran


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_prompts_are_encoded_once_and_drawn_without_the_llm(models: Path) -> None:
    prompts, folder = models / "prompts.txt", models / "encodings"
    drawing = ("--steps", 2, "--seed", 3)
    run(models, "batch", prompts, "--out", models / "with", *drawing)
    first = run(models, "encode", prompts, "--out", folder).stdout.splitlines()
    assert [Path(line).name.rpartition("-")[0] for line in first] == ["empty", "two-dog", "a-red-cat"]
    assert run(models, "encode", prompts, "--out", folder).stdout == ""
    assert (
        len(run(models, "encode", prompts, "--out", folder, "--negative-prompt", "a car").stdout.splitlines())
        == 1
    )

    shutil.rmtree(models / "llm")  # it cannot be loaded any more
    run(models, "batch", prompts, "--out", models / "without", *drawing, "--encodings", folder)
    for number in range(3):
        name = f"{number:06d}.png"
        assert np.array_equal(pixels(models / "with" / name), pixels(models / "without" / name))
    told = [read_metadata(models / kind / "000000.png") for kind in ("with", "without")]
    assert told[0] == told[1]
    # Pictures are known by their models' digests, so what one command drew is not drawn again by the other.
    assert (
        run(models, "batch", prompts, "--out", models / "with", *drawing, "--encodings", folder).stdout == ""
    )

    one = ("generate", "two dog", "--out", models / "one.png", *drawing, "--encodings", folder)
    run(models, *one, "--negative-prompt", "a car")
    run(
        models,
        "compare",
        "two dog",
        "--out",
        models / "two.png",
        *drawing,
        "--encodings",
        folder,
        "--number",
        1,
    )
    refused = run(models, *one, "--negative-prompt", "a house", exit_code=1)
    assert "'a house' is not among the 4 saved encodings" in refused.stderr


def test_encodings_beside_an_llm_and_folders_of_another_origin_are_refused(models: Path) -> None:
    prompts, folder = models / "prompts.txt", models / "encodings"
    run(models, "encode", prompts, "--out", folder)
    other = run(models, "encode", prompts, "--out", folder, "--dtype", "bfloat16", exit_code=1)
    assert "another origin" in other.stderr
    both = ("generate", "a cat", "--out", models / "x.png", "--encodings", folder, "--llm", models / "llm")
    assert "expected one of them" in run(models, *both, exit_code=1).stderr
    gone = ("generate", "a cat", "--out", models / "x.png", "--encodings", models / "gone")
    assert "is neither a saved encoding nor a folder with some" in run(models, *gone, exit_code=1).stderr
    (models / "prompts.txt").write_text("\n \n")
    assert "one prompt a line" in run(models, "encode", prompts, "--out", folder, exit_code=1).stderr


@pytest.mark.parametrize(
    ("fields", "draws_alone"),
    [
        ({}, True),
        ({"scale": 1.0}, True),
        ({"scale": 0.5}, False),
        ({"keep_base_text": True}, False),
        ({"layer_scale": "mid_block.*=0.5"}, False),
    ],
)
def test_text_encoders_are_loaded_where_they_are_asked(
    models: Path, fields: dict[str, Any], draws_alone: bool
) -> None:
    chosen = Models(adapter=str(models / "adapter"), device="cpu", **fields)
    assert (load(chosen, base_draws=False)[1].text_encoder is None) is draws_alone
    assert load(chosen)[1].text_encoder is not None
