"""`llmdiff init`: a configuration for a folder that someone has."""

import pytest
import yaml
from PIL import Image
from tiny.families import BUILDERS
from typer.testing import CliRunner

from llmdiff.cli.main import app
from llmdiff.training.config import load_config


def run(*words):
    return CliRunner().invoke(app, ["init", *map(str, words)])


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of 20 upright pictures with captions; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (32, 48), (9 * index, 90, 90)).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"cat {index % 4}")
    return folder


def test_a_base_whose_memory_cannot_be_counted_gets_batches_of_one(pictures, models, tmp_path):
    BUILDERS["lumina2"]().save_pretrained(tmp_path / "base")
    done = run(pictures, "--base", tmp_path / "base", "--llm", models / "llm", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert load_config(pictures.parent / "mine.yaml", []).training.batch_size == 1


def test_the_configuration_fits_the_folder_and_the_base(pictures, models):
    (pictures / "19.txt").unlink()
    done = run(pictures, "--base", models / "sdxl", "--llm", models / "llm", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "1 of the first 500 are left out: no text file with a caption" in done.output
    assert done.output.splitlines()[-1] == "next: llmdiff train mine.yaml"
    config = load_config(pictures.parent / "mine.yaml", [])
    native_px = yaml.safe_load((models / "sdxl" / "unet" / "config.json").read_text())["sample_size"]
    factor = (
        len(yaml.safe_load((models / "sdxl" / "vae" / "config.json").read_text())["block_out_channels"]) - 1
    )
    assert config.data.resolution_px == native_px * 2**factor
    assert config.data.aspect_buckets
    assert config.training.batch_size == 4  # a quarter of 19 pictures, as a power of two
    assert config.training.steps == 500  # 100 epochs
    assert config.training.precision == "no"
    assert config.watch.prompts == ("cat 0", "cat 1", "cat 2")
    # A tenth is held out, and the rest is more than a batch.
    assert config.validation_count(19) == 1


def test_the_embedded_default_goes_on_from_the_shipped_adapter(pictures):
    done = run(pictures, "--device", "cpu", "--out", "here.yaml")
    assert done.exit_code == 0, done.output
    config = load_config(pictures.parent / "here.yaml", [])
    assert config.models.start == config.models.base == "openmoji"
    assert config.training.steps == 100  # 20 epochs: measured, more teach no more and lose what it knew
    assert not config.data.aspect_buckets


def test_a_configuration_is_never_overwritten(pictures):
    (pictures.parent / "mine.yaml").write_text("mine")
    done = run(pictures)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "mine.yaml, which exists" in done.output
    assert (pictures.parent / "mine.yaml").read_text() == "mine"


@pytest.mark.hostile("files and folders")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("no folder", "is not a folder"),
        ("no captions", "no usable sample (20 x no text file with a caption)"),
        ("no pictures", "has no pictures"),
        ("base", "the configs of base '/nowhere' cannot be found"),
    ],
)
def test_what_is_missing_is_said_in_one_line(pictures, spoil, message):
    for path in pictures.iterdir():
        if (spoil, path.suffix) in (("no captions", ".txt"), ("no pictures", ".png")):
            path.unlink()
    folder = pictures / "none" if spoil == "no folder" else pictures
    done = run(folder, "--device", "cpu", *(("--base", "/nowhere") if spoil == "base" else ()))
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.splitlines()) == 1
    assert not list(pictures.parent.glob("*.yaml"))
