"""examples/method.py computes what the library computes: encoding, picture, loss and gradients."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.pipelines import WORDS, build_sd, word_tokenizer
from tiny.readers import shaken
from transformers import AutoConfig, AutoModelForCausalLM

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.families import family_of
from llmdiff.adapter.installation import install
from llmdiff.adapter.refiner import LAYERS
from llmdiff.controller import LLMController
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.denoise import denoise
from llmdiff.training.objective import Objective
from llmdiff.types import TextEncoding

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "method.py"
KINDS = ("llama", "qwen2", "qwen3", "mistral", "smollm3")
PROMPTS = ["a red cat above the dog", "two apple", ""]
TEMPLATE = "the photo of {prompt}"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("method", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


method = _load()


def llm_of(kind: str) -> DecoderLLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    ids = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **heads, **ids)
    # Larger weights than a new model has, so that the blocks do something.
    return DecoderLLM(shaken(AutoModelForCausalLM.from_config(config)), word_tokenizer(), id=kind)


def reader_of(llm: DecoderLLM, template: str = TEMPLATE) -> Callable[[str], Any]:
    return partial(method.read_blocks, llm.model, llm.tokenizer, template=template)


def both(llm: DecoderLLM, pipe: Any, **options: Any) -> tuple[LLMController, Any]:
    """The library's controller with a shaken adapter, and the example's adapter with the same weights."""
    controller = LLMController.create(llm, pipe, template=TEMPLATE, calibration_prompts=PROMPTS, **options)
    shaken(controller.adapter)
    paper = options.get("encoding") == "paper"
    layers = options.get("refiner_layers", LAYERS)
    plain = method.Adapter(pipe.unet, 3, 16, guided=not paper, refiner_layers=layers)
    plain.load_state_dict(controller.adapter.state_dict())
    return controller, plain


def test_it_is_read_in_one_sitting() -> None:
    assert len(FILE.read_text().splitlines()) <= 250


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_as_the_library_reads_them(kind: str) -> None:
    llm = llm_of(kind)
    states = llm.block_updates(PROMPTS, lone="token+bos", template=TEMPLATE)
    assert float((states.context - states.lone).abs().max()) > 0.1
    for row, prompt in enumerate(PROMPTS):
        x0, u, v = reader_of(llm)(prompt)
        real = states.token_mask[row]
        torch.testing.assert_close(x0, states.x0[row, real])
        torch.testing.assert_close(u, states.context[:, row, real], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(v, states.lone[:, row, real], atol=1e-4, rtol=1e-4)


def test_scales_are_the_librarys() -> None:
    llm = llm_of("llama")
    controller = LLMController.create(llm, build_sd(), template=TEMPLATE, calibration_prompts=PROMPTS)
    plain = method.ContextEncoding(3, 16)
    plain.calibrate([reader_of(llm)(prompt) for prompt in PROMPTS])
    for name, scale in plain.named_buffers():
        torch.testing.assert_close(scale, getattr(controller.adapter.context, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"encoding": "paper", "refiner_layers": 0}, {"refiner_layers": 4}])
def test_text_states_and_picture_are_the_librarys(options: dict[str, Any], draw: Callable[..., Any]) -> None:
    llm, pipe = llm_of("llama"), build_sd()
    controller, plain = both(llm, pipe, **options)
    encoding = controller.adapter.context.encode(llm, PROMPTS)
    expected, _ = controller.adapter.condition(encoding)
    read = reader_of(llm)
    found = plain([read(prompt) for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    with controller.attached(pipe):
        theirs = draw(pipe, PROMPTS[0], guidance_scale=3.0)
    base = draw(pipe, PROMPTS[0], guidance_scale=3.0)
    assert float((theirs - base).abs().max()) > 0.01
    plain.attach(pipe.unet)
    steps = {"num_inference_steps": 2, "output_type": "np"}
    ours = torch.from_numpy(method.draw(pipe, plain, read, PROMPTS[0], 5, **steps))
    torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_training_step_has_the_librarys_loss_and_gradients(prediction: str) -> None:
    llm, pipe = llm_of("llama"), build_sd()
    pipe.scheduler.register_to_config(prediction_type=prediction)
    pipe.unet.requires_grad_(False)
    controller, plain = both(llm, pipe)
    adapter: LLMDiffAdapter = controller.adapter.train()
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    objective = Objective.of(pipe.scheduler)
    noised = objective.noised_at(latents, noise, torch.tensor([0.2, 0.7]))
    states = llm.block_updates(PROMPTS[:2], lone="token+bos", template=TEMPLATE)
    assert adapter.context is not None
    encoding = TextEncoding(states=adapter.context.sum(states), token_mask=states.token_mask)
    with install(pipe.unet, adapter):
        text, _ = adapter.condition(encoding)
        output = denoise(pipe.unet, family_of(pipe), noised.latents, noised.timesteps, text, None, [])
    expected = objective.loss(output, noised)
    expected.backward()

    plain.attach(pipe.unet)
    read = reader_of(llm)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    before = {name: value.detach().clone() for name, value in plain.named_parameters()}
    text = plain([read(prompt) for prompt in PROMPTS[:2]])
    found = method.training_step(pipe.unet, pipe.scheduler, text, latents, noise, noised.timesteps, optimizer)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)
    theirs = dict(adapter.named_parameters())
    moved = 0.0
    for name, value in plain.named_parameters():
        gradient = theirs[name].grad
        if gradient is not None:
            # A step of plain gradient descent at rate 1 is the gradient.
            torch.testing.assert_close(
                before[name] - value.detach(), gradient.reshape(value.shape), atol=1e-5, rtol=1e-2
            )
            moved = max(moved, float(gradient.abs().max()))
    assert moved > 1e-3


@pytest.mark.slow
def test_the_shipped_default_draws_its_golden_picture(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    command = [sys.executable, str(FILE), "a cat above a red apple", "--seed", "7", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the loss of one training step" in result.stdout
    pictures = []
    for path in (out, ROOT / "tests" / "llmdiff" / "drawing" / "golden" / "generate.png"):
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    # Rounding: the same sums in another order.
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


@pytest.mark.slow
def test_another_llm_gets_a_new_adapter(tmp_path: Path) -> None:
    llm = llm_of("qwen3")
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    out = tmp_path / "a.png"
    command = [sys.executable, str(FILE), "a red cat", "--llm", str(tmp_path / "llm"), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with Image.open(out) as image:
        assert image.size == (128, 128)
