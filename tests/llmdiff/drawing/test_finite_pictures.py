"""Pictures that are not finite are never written: every way to draw one raises, and says what to do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS
from tiny.pipelines import build_llm, build_sd
from typer.testing import CliRunner

from llmdiff.adapter import attach, detach
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.drawing.models import Models
from llmdiff.errors import NonFinitePictureError
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.language.llm import DecoderLLM
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.studio import Studio

KIND = "non-finite pictures"
ORDER = DrawingSettings(prompt="a cat", seed=3, steps=2)


def overflows(pipe: Any, dtype: torch.dtype = torch.float16) -> Any:
    """The pipeline with a VAE that is right in float32 and overflows in float16."""
    with torch.no_grad():
        next(pipe.vae.decoder.conv_in.parameters()).mul_(3e5)
    return pipe.to(dtype)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny adapter whose pipeline, beside it, overflows in float16."""
    folder = tmp_path_factory.mktemp("models")
    pipe, llm = overflows(build_sd(), torch.float32), build_llm()
    pipe.save_pretrained(folder / "pipe")
    llm.model.save_pretrained(folder / "llm")
    llm.tokenizer.save_pretrained(folder / "llm")
    loaded = DecoderLLM.from_pretrained(folder / "llm")
    LLMController.create(loaded, pipe, base_model_id=str(folder / "pipe")).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.hostile(KIND)
@pytest.mark.parametrize("verb", ["generate", "compare", "batch"])
def test_verbs_write_nothing(verb: str, models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    for dtype, status in (("float16", 1), ("float32", 0)):
        out = tmp_path / dtype
        what = (
            [str(prompts), "--out", str(out)] if verb == "batch" else ["a cat", "--out", str(out / "a.png")]
        )
        options = ["--adapter", str(models), "--device", "cpu", "--steps", "2", "--dtype", dtype]
        ran = CliRunner().invoke(app, [verb, *what, *options])
        assert ran.exit_code == status, ran.output
        assert len(list(out.glob("*.png"))) == 1 - status
        if status:
            assert "the VAE overflows in float16; draw in float32 or bfloat16" in ran.stderr.replace(
                "\n", " "
            )


@pytest.mark.hostile(KIND)
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_whoever_calls_an_attached_pipeline_hears_of_it(
    family: str, tiny_llm: Any, draw: Callable[..., torch.Tensor]
) -> None:
    pipe = BUILDERS[family]()
    controller = LLMController.create(tiny_llm, pipe)
    with torch.no_grad():
        next(pipe.vae.decoder.parameters()).fill_(float("inf"))
    controller.attach(pipe)
    with pytest.raises(NonFinitePictureError, match="the VAE overflows in float32"):
        draw(pipe)
    twin = copy.deepcopy(pipe)
    controller.detach(pipe)
    assert len(pipe.vae.decoder._forward_hooks) == 0
    with pytest.raises(NonFinitePictureError):
        draw(twin)
    detach(twin)
    assert not torch.isfinite(draw(twin)).all()


@pytest.mark.hostile(KIND)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_denoiser_that_overflows_is_told_from_a_vae(dtype: torch.dtype) -> None:
    pipe = BUILDERS["sd"]()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFinitePictureError, match="the denoiser gave NaN or infinity") as raised:
        draw(pipe.to(dtype), ORDER, 3)
    assert ("guidance scale" in str(raised.value)) == (dtype == torch.float32)


@pytest.mark.hostile(KIND)
def test_drawing_without_anything_attached() -> None:
    pipe = overflows(BUILDERS["sd"]())
    with pytest.raises(NonFinitePictureError):
        draw(pipe, ORDER, 3)
    with pytest.raises(NonFinitePictureError):
        pipeline_system(pipe, steps=2)(["a cat"], [3])
    assert len(pipe.vae.decoder._forward_hooks) == 0


@pytest.mark.hostile(KIND)
def test_an_infinite_pixel_is_no_white_one() -> None:
    pipe = BUILDERS["sd"]()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NonFinitePictureError):
        draw(pipe, ORDER, 3)


@pytest.mark.hostile(KIND)
def test_the_server_and_the_page(models: Path, tiny_llm: Any) -> None:
    pipe = overflows(BUILDERS["sd"](), torch.float32)
    drawer = PipelineDrawer(LLMController.create(tiny_llm, pipe), pipe.to(torch.float16), Models())
    with pytest.raises(NonFinitePictureError):
        drawer.draw([ORDER], [3], on_step=lambda: None)
    studio = Studio()
    try:
        with pytest.raises(NonFinitePictureError):
            list(studio.draw(ORDER, Models(adapter=str(models), dtype="float16", device="cpu")))
    finally:
        studio.close()


def test_the_attached_pipeline_is_checked_at_every_scale(tiny_llm: Any) -> None:
    pipe = BUILDERS["sd"]()
    adapter = LLMController.create(tiny_llm, pipe).adapter
    overflows(pipe)
    attach(pipe, tiny_llm, adapter, scale=0.0)
    with pytest.raises(NonFinitePictureError):
        pipe("a cat", num_inference_steps=1, output_type="np")
