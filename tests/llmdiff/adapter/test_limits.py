"""Sizes, steps and negative prompts: what a pipeline cannot draw is refused or told of before anything is drawn."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance
from PIL import Image
from tiny.every_pipeline import config_of
from tiny.families import BUILDERS, DRAW_OPTIONS, drawn, flow_vae
from tiny.pipelines import tiny_vae
from typer.testing import CliRunner

from llmdiff.adapter.limits import (
    check_steps,
    fitted_size_px,
    guidance_arguments,
    own_size_px,
    side_multiple_px,
    warn_of_unread_negative,
)
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.drawing.draw import DrawingSettings, draw
from llmdiff.errors import ConfigError
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.language.llm import DecoderLLM

SIZES = "sizes and guidance"


def settings(**more: Any) -> DrawingSettings:
    return DrawingSettings(**{"prompt": "a cat", "seed": 3, "steps": 2} | more)


def eightfold(family: str) -> Any:
    """A pipeline whose VAE makes 8 pixels of a latent, as the real ones do."""
    pipe = BUILDERS[family]()
    make = tiny_vae if family in ("sd", "sdxl", "pixart") else flow_vae
    config = {**make(16 if family == "sd3" else 4).config, "block_out_channels": (4,) * 4}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    parts = {**pipe.components, "vae": type(pipe.vae).from_config(config)}
    made = type(pipe)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.hostile(SIZES)
@pytest.mark.parametrize(
    ("family", "multiple", "wrong"), [("sd", 8, 44), ("sdxl", 8, 44), ("pixart", 8, 44), ("flux", 16, 40)]
)
def test_a_size_that_the_pipeline_would_round_is_refused(family: str, multiple: int, wrong: int) -> None:
    pipe = eightfold(family)
    assert side_multiple_px(pipe) == multiple
    for height, width, name in ((wrong, None, "height"), (None, wrong, "width"), (0, 64, "height")):
        with pytest.raises(ConfigError, match=rf"^{name} is \d+ px, expected a multiple of {multiple} "):
            fitted_size_px(pipe, height, width)


@pytest.mark.hostile(SIZES)
def test_patches_count_where_the_pipeline_does_not_see_to_them() -> None:
    pipe = eightfold("sd3")
    assert side_multiple_px(pipe) == 8
    pipe.transformer.register_to_config(patch_size=2)
    assert side_multiple_px(pipe) == 16
    with pytest.raises(ConfigError, match=r"height is 40 px, expected a multiple of 16 .*: 32 or 48"):
        fitted_size_px(pipe, 40, 40)
    assert side_multiple_px(BUILDERS["sana"]()) == 32


@pytest.mark.hostile(SIZES)
@pytest.mark.parametrize("given", ["height", "width"])
@pytest.mark.parametrize("family", ["sd", "flux", "sd3"])
def test_a_side_alone_is_drawn_beside_the_pipelines_own(family: str, given: str, tiny_llm: Any) -> None:
    pipe = BUILDERS[family]()
    if family == "flux":
        pipe.default_sample_size = 8
    own = own_size_px(pipe)
    assert own is not None
    expected = {"height": own[0], "width": own[1]} | {given: 24}
    with LLMController.create(tiny_llm, pipe).attached(pipe):
        picture = draw(pipe, settings(**{f"{given}_px": 24}), 3)
    assert picture.size == (expected["width"], expected["height"])


def test_no_side_is_left_to_the_pipeline() -> None:
    assert fitted_size_px(BUILDERS["sd"](), None, None) == (None, None)


@pytest.mark.hostile(SIZES)
def test_much_larger_than_trained_is_told_of_once() -> None:
    pipe = BUILDERS["sd"]()
    with pytest.warns(
        UserWarning, match="size 16 x 40 is more than twice the 16 x 16 that the pipeline was trained"
    ):
        assert fitted_size_px(pipe, 40, None) == (40, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted_size_px(pipe, 32, 32)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            draw(pipe, settings(height_px=48), 3)
    assert len([one for one in seen if "more than twice" in str(one.message)]) == 1


@pytest.mark.hostile(SIZES)
@pytest.mark.parametrize(
    ("family", "scale", "message"),
    [
        ("sd", 1.0, "changes nothing at guidance_scale 1: choose a scale above 1"),
        ("sd3", 0.0, "changes nothing at guidance_scale 0"),
        ("flux", 3.5, "Flux reads it at a true_cfg_scale above 1, and has 1; in Python, pass true_cfg_scale"),
    ],
)
def test_a_negative_prompt_that_changes_nothing_is_told_of(family: str, scale: float, message: str) -> None:
    pipe, order = BUILDERS[family](), {"guidance_scale": scale, "height_px": 16, "width_px": 16}
    with pytest.warns(UserWarning, match=message):
        one = draw(pipe, settings(negative_prompt="green", **order), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "guidance_scale has no effect")  # the tiny Flux is distilled
        other = draw(pipe, settings(**order), 3)
    assert one.tobytes() == other.tobytes()


def distilled(family: str, guider: Any = None) -> Any:
    """A pipeline whose guider or denoiser says that no negative prompt is read."""
    pipe = BUILDERS[family]()
    if family == "hunyuan-image":
        pipe.register_modules(guider=guider, ocr_guider=guider)
    else:
        pipe.unet = type(pipe.unet)(**{**config_of(pipe.unet), "time_cond_proj_dim": 8}).eval()
    return pipe


READ = [(family, scale, BUILDERS[family]) for family in BUILDERS for scale in (0.0, 0.5, 1.0, 4.0)]
READ += [(family, 4.0, partial(distilled, family)) for family in ("hunyuan-image", "sd")]
READ += [
    ("hunyuan-image", 4.0, partial(distilled, "hunyuan-image", AdaptiveProjectedMixGuidance(enabled=False)))
]


@pytest.mark.parametrize(("family", "scale", "make"), READ)
def test_just_the_negative_prompts_that_change_nothing_are_told_of(
    family: str, scale: float, make: Callable[[], Any]
) -> None:
    pipe = make()
    options = {
        "height": 32,
        "width": 32,
        **DRAW_OPTIONS.get(type(pipe).__name__, {}),
        **guidance_arguments(pipe, scale),
    }
    wanted = inspect.signature(type(pipe).__call__).parameters
    options = {name: value for name, value in options.items() if name in wanted}
    if "negative_prompt" not in wanted:
        # `pictures` says so of every such class.
        assert family in ("sana-sprint", "flux2")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_unread_negative(pipe, scale)
        return
    one, other = (drawn(pipe, negative_prompt=text, **options) for text in ("green apple", "two blue dog"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_unread_negative(pipe, scale)
    assert ["negative_prompt changes nothing" in str(one.message) for one in told] == (
        [True] if torch.equal(one, other) else []
    )


@pytest.mark.hostile(SIZES)
@pytest.mark.parametrize("family", list(BUILDERS))
def test_more_steps_than_the_scheduler_has_are_refused(family: str) -> None:
    pipe = BUILDERS[family]()
    check_steps(pipe, 1000)
    for refused in (
        lambda: check_steps(pipe, 1001),
        lambda: draw(pipe, settings(steps=1001), 3),
        lambda: pipeline_system(pipe, steps=1001),
    ):
        with pytest.raises(ConfigError, match="steps is 1001, expected at most 1000"):
            refused()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    from tiny.pipelines import build_llm, build_sd

    pipe, llm = build_sd(), build_llm()
    pipe.save_pretrained(folder / "pipe")
    llm.model.save_pretrained(folder / "llm")
    llm.tokenizer.save_pretrained(folder / "llm")
    loaded = DecoderLLM.from_pretrained(folder / "llm")
    LLMController.create(loaded, pipe, base_model_id=str(folder / "pipe")).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.hostile(SIZES)
@pytest.mark.parametrize("verb", ["generate", "compare", "batch"])
def test_steps_on_the_command_line(verb: str, adapter: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    out = tmp_path / "out"
    what = [str(prompts), "--out", str(out)] if verb == "batch" else ["a cat", "--out", str(out / "a.png")]
    ran = CliRunner().invoke(
        app, [verb, *what, "--adapter", str(adapter), "--device", "cpu", "--steps", "1001"]
    )
    assert ran.exit_code == 1
    assert "steps is 1001" in ran.stderr
    assert list(out.glob("*.png")) == []


@pytest.mark.hostile(SIZES)
def test_batch_with_one_side_draws_once(adapter: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    command = ["batch", str(prompts), "--out", str(tmp_path / "out"), "--steps", "1", "--height", "24"]
    for written in (1, 0):
        ran = CliRunner().invoke(app, [*command, "--adapter", str(adapter), "--device", "cpu"])
        assert ran.exit_code == 0, ran.output
        assert ran.stdout.count(".png") == written
    with Image.open(tmp_path / "out" / "000000.png") as image:
        assert image.size == (16, 24)
