"""The front door: create, attach, save, load, encode."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llmdiff
from llmdiff import LLMController
from llmdiff.adapter.base_pipeline import _index, _loader
from llmdiff.adapter.manifest import MANIFEST_NAME, write_manifest_of_all
from llmdiff.errors import (
    AdapterMismatchError,
    AdapterNotFoundError,
    AttachError,
    CorruptWeightsError,
    PipelineNotFoundError,
    PromptError,
    UnsupportedPipelineError,
)
from llmdiff.language.blocks import LONES, Lone


@pytest.fixture
def controller(pipe: Any, tiny_llm: Any) -> LLMController:
    return LLMController.create(tiny_llm, pipe)


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, llmdiff; llmdiff.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names() -> None:
    for name in llmdiff.__all__:
        assert getattr(llmdiff, name) is not None
        assert name in dir(llmdiff)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmdiff.nothing


def test_create_calibrates_the_context_encoding(controller: LLMController) -> None:
    context = controller.adapter.context
    assert context is not None
    assert context.encoding == "guided"
    assert context.lone == "token+bos"
    assert bool((context.score_scale != 1).all())
    assert bool((context.score_scale > 0).all())


@pytest.mark.parametrize("lone", LONES)
def test_the_reading_of_alone_is_saved_with_the_adapter(
    tiny_llm: Any, pipe: Any, tmp_path: Path, lone: Lone
) -> None:
    made = LLMController.create(tiny_llm, pipe, lone=lone)
    made.save_pretrained(tmp_path)
    loaded = LLMController.from_pretrained(tmp_path, llm=tiny_llm)
    assert loaded.adapter.context is not None
    assert loaded.adapter.context.lone == loaded.adapter.config.lone == lone
    assert torch.equal(loaded.encode("two red cat").states, made.encode("two red cat").states)


def test_attached_detaches_at_its_end_and_on_errors(controller: LLMController, pipe: Any, draw: Any) -> None:
    base = draw(pipe)
    with controller.attached(pipe) as inner:
        assert inner is pipe
        ours = draw(pipe)
    assert not torch.equal(ours, base)
    assert torch.equal(draw(pipe), base)
    with pytest.raises(PromptError), controller.attached(pipe):
        draw(pipe, " ")
    assert "encode_prompt" not in vars(pipe)
    assert torch.equal(draw(pipe), base)
    with pytest.raises(ZeroDivisionError), controller.attached(pipe, 0.5):
        _ = 1 / 0
    assert torch.equal(draw(pipe), base)


def test_a_failed_attach_detaches_nothing(controller: LLMController, pipe: Any, draw: Any) -> None:
    controller.attach(pipe)
    ours = draw(pipe)
    with pytest.raises(AttachError), controller.attached(pipe):
        pass
    assert torch.equal(draw(pipe), ours)
    controller.detach(pipe)


def test_save_and_load_draw_the_same(
    controller: LLMController, pipe: Any, tiny_llm: Any, tmp_path: Path, draw: Any
) -> None:
    controller.save_pretrained(tmp_path / "saved")
    loaded = LLMController.from_pretrained(tmp_path / "saved", llm=tiny_llm)
    with controller.attached(pipe):
        ours = draw(pipe)
    with loaded.attached(pipe):
        assert torch.equal(draw(pipe), ours)


def test_the_llm_is_found_by_the_id_in_the_config(pipe: Any, make_llm: Any, tmp_path: Path) -> None:
    source = make_llm(id=str(tmp_path / "llm"))
    source.model.save_pretrained(tmp_path / "llm")
    source.tokenizer.save_pretrained(tmp_path / "llm")
    LLMController.create(source, pipe).save_pretrained(tmp_path / "adapter")
    loaded = LLMController.from_pretrained(tmp_path / "adapter")
    prompts = ["a red cat", ""]
    expected = LLMController(source, loaded.adapter).encode(prompts).states
    assert torch.allclose(loaded.encode(prompts).states, expected, atol=1e-5)


def test_load_pipeline_loads_the_base(pipe: Any, tiny_llm: Any, tmp_path: Path, draw: Any) -> None:
    pipe.save_pretrained(tmp_path / "base")
    controller = LLMController.create(tiny_llm, pipe, base_model_id=str(tmp_path / "base"))
    loaded = controller.load_pipeline()
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipe)
    assert torch.equal(draw(loaded), draw(pipe))
    assert LLMController.create(tiny_llm, loaded).adapter.config.base_model_id == str(tmp_path / "base")


def test_a_base_that_is_not_there(
    controller: LLMController, tiny_llm: Any, pipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(PipelineNotFoundError, match="base_model_id of the adapter is empty"):
        controller.load_pipeline()
    lost = LLMController.create(tiny_llm, pipe, base_model_id=str(tmp_path / "lost"))
    with pytest.raises(PipelineNotFoundError, match=r"base pipeline .*lost") as caught:
        lost.load_pipeline()
    assert "\n" not in str(caught.value)


def test_encode_is_repeatable_and_noise_comes_from_the_seed(controller: LLMController) -> None:
    plain = controller.encode(["a red cat", "two dog on the left"])
    assert plain.states.shape[:2] == plain.token_mask.shape
    assert plain.states.shape[2] == 16
    assert torch.equal(controller.encode(["a red cat", "two dog on the left"]).states, plain.states)
    assert torch.allclose(controller.encode("a red cat").states[0], plain.states[0, :4], atol=1e-4)
    noisy = controller.encode("a red cat", noise_seed=3).states
    assert torch.equal(noisy, controller.encode("a red cat", noise_seed=3).states)
    assert not torch.equal(noisy, controller.encode("a red cat", noise_seed=4).states)


def test_an_llm_of_another_size_is_refused(controller: LLMController, make_llm: Any) -> None:
    with pytest.raises(AdapterMismatchError, match="blocks: 5, the adapter was made for 3"):
        LLMController(make_llm(num_blocks=5), controller.adapter)


def test_an_llm_of_another_name_needs_a_word_from_the_caller(
    controller: LLMController, make_llm: Any, pipe: Any, tmp_path: Path, draw: Any
) -> None:
    controller.save_pretrained(tmp_path)
    other = make_llm(id="other")
    with pytest.raises(AdapterMismatchError, match="pass strict=False"):
        LLMController.from_pretrained(tmp_path, llm=other)
    with pytest.warns(UserWarning, match="right only if both are the same model"):
        loaded = LLMController.from_pretrained(tmp_path, llm=other, strict=False)
    with controller.attached(pipe):
        ours = draw(pipe)
    with pytest.warns(UserWarning, match="the same model"), loaded.attached(pipe):
        assert torch.equal(draw(pipe), ours)


def test_load_pipeline_takes_another_base_that_fits(
    tiny_llm: Any, make_sd: Any, sdxl_pipe: Any, tmp_path: Path
) -> None:
    controller = LLMController.create(tiny_llm, make_sd())
    make_sd().save_pretrained(tmp_path / "tuned")
    assert type(controller.load_pipeline(tmp_path / "tuned")).__name__ == "StableDiffusionPipeline"
    sdxl_pipe.save_pretrained(tmp_path / "sdxl")
    with pytest.raises(AdapterMismatchError, match="Stable Diffusion XL"):
        controller.load_pipeline(tmp_path / "sdxl")
    with pytest.raises(PipelineNotFoundError, match="nobody/nothing"):
        controller.load_pipeline("nobody/nothing")


def test_a_damaged_base_is_refused(tiny_llm: Any, make_sd: Any, tmp_path: Path) -> None:
    controller = LLMController.create(tiny_llm, make_sd())
    make_sd().save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptWeightsError, match=r"truncated or damaged|cannot read") as caught:
        controller.load_pipeline(tmp_path)
    assert "\n" not in str(caught.value)
    # One bit that safetensors would not notice: the manifest does.
    weights.write_bytes(whole)
    write_manifest_of_all(tmp_path)
    assert '"unet/config.json"' in (tmp_path / MANIFEST_NAME).read_text()
    controller.load_pipeline(tmp_path)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptWeightsError, match="has SHA-256"):
        controller.load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": ["own_unet", "OwnUNet"]}, "brings Python code of its own, and none of it was run"),
        ({"_class_name": ["own", "OwnPipeline"]}, "is no text-to-image pipeline that diffusers knows"),
        ({"_class_name": "DDPMPipeline"}, "is no text-to-image pipeline that diffusers knows"),
    ],
)
def test_a_base_with_code_of_its_own_or_of_another_kind(
    tiny_llm: Any, make_sd: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    controller = LLMController.create(tiny_llm, make_sd())
    make_sd().save_pretrained(tmp_path)
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("unet/own_unet.py", "own.py"):
        (tmp_path / name).write_text(code)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(UnsupportedPipelineError, match=message) as caught:
        controller.load_pipeline(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("saved", "loaded_by"),
    [
        ("StableDiffusionPipeline", "StableDiffusionPipeline"),
        ("FluxPipeline", "FluxPipeline"),
        # Not drawn from a text alone: diffusers finds the one of the same parts that is.
        ("StableDiffusionImg2ImgPipeline", "AutoPipelineForText2Image"),
        ("SomethingNew", "AutoPipelineForText2Image"),
        (None, "AutoPipelineForText2Image"),
    ],
)
def test_a_folder_that_names_a_known_class_is_loaded_by_it(
    tmp_path: Path, saved: str | None, loaded_by: str
) -> None:
    if saved is not None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": saved}))
    assert _loader(_index(tmp_path)).__self__.__name__ == loaded_by


def test_the_embedded_default_that_was_not_built_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llm: Any, pipe: Any
) -> None:
    monkeypatch.setattr("llmdiff.adapter.base_pipeline.WEIGHTS", tmp_path)
    with pytest.raises(AdapterNotFoundError, match=r"llmdiff-lab build"):
        LLMController.from_pretrained("openmoji")
    with pytest.raises(PipelineNotFoundError, match=r"llmdiff-lab build"):
        LLMController.create(tiny_llm, pipe, base_model_id="openmoji").load_pipeline()


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="is no folder"):
        LLMController.from_pretrained(tmp_path / "nothing")
    with pytest.raises(AdapterNotFoundError, match="nobody/nothing"):
        LLMController.from_pretrained("nobody/nothing")
