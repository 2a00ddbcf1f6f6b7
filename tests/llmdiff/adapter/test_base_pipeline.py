"""Base pipelines as people keep them: half-precision variants, single files, without a text encoder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS

from llmdiff.adapter import base_pipeline
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.controller import LLMController
from llmdiff.errors import CorruptWeightsError, PipelineNotFoundError
from llmdiff.evaluation.metrics.loading import load_metric
from llmdiff.evaluation.suites.scenes import load_checker
from llmdiff.world.packaged import WEIGHTS

Draw = Any


def test_a_folder_that_holds_a_variant_alone(sd_pipe: Any, draw: Draw, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.safetensors"))
    assert torch.equal(draw(loaded(tmp_path)), draw(sd_pipe))


def test_stable_diffusion_3_without_its_t5(draw: Draw, tmp_path: Path) -> None:
    pipe = BUILDERS["sd3"]()
    pipe.save_pretrained(tmp_path)
    found = loaded(tmp_path)
    assert found.text_encoder_3 is None
    assert torch.equal(draw(found), draw(pipe))


@pytest.mark.hostile("files and folders")
def test_a_single_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(PipelineNotFoundError, match=r"is a single file, .* from_single_file and attach"):
        loaded(path)


def loaded(path: Path) -> Any:
    pipe = load_base_pipeline(str(path), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("part", "file", "load"),
    [
        (
            "pipeline",
            "vae/diffusion_pytorch_model.safetensors",
            lambda name: load_base_pipeline(name, dtype=torch.float32),
        ),
        ("adapter", "diffusion_pytorch_model.safetensors", LLMController.from_pretrained),
        ("checker", "model.safetensors", load_checker),
        ("siglip", "model.safetensors", lambda name: load_metric("siglip", name)),
    ],
)
def test_a_flipped_bit_in_any_packaged_part_is_an_error(
    part: str, file: str, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(base_pipeline, "WEIGHTS", tmp_path / "weights")
    damaged = tmp_path / "weights" / part / file
    content = bytearray(damaged.read_bytes())
    content[-2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match="has SHA-256"):
        load("openmoji")
