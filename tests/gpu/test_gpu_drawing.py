"""An attached pipeline on a GPU: the CPU's pictures, half precision, offload, compiling, the embedded default."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny.families import BUILDERS

from llmdiff import LLMController
from llmdiff.adapter import FAMILIES, attach, detach, families

Draw = Callable[..., torch.Tensor]
PROMPTS = ["a cat", "two dog on the left of a red car"]
NAMES = [family.name for family in FAMILIES]


@pytest.mark.parametrize("family", NAMES)
def test_a_gpu_draws_what_the_cpu_draws(family: str, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    pipe = BUILDERS[family]()
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    ours = draw(pipe, PROMPTS)
    detach(pipe)
    pipe.to("cuda")
    base = draw(pipe, PROMPTS)
    tiny_llm.to("cuda")
    attach(pipe, tiny_llm, adapter)
    assert (draw(pipe, PROMPTS) - ours).abs().max() < 2e-3
    detach(pipe)
    assert torch.equal(draw(pipe, PROMPTS), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", NAMES)
def test_half_precision_stays_near(
    family: str,
    dtype: torch.dtype,
    tiny_llm: Any,
    make_adapter: Any,
    draw: Draw,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Pipelines draw their noise in their own precision, where the same seed gives other numbers.
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, dtype=torch.float32, **k: randn(*a, **k).to(dtype))
    pipe = BUILDERS[family]().to("cuda")
    adapter = make_adapter(pipe, tiny_llm)
    tiny_llm.to("cuda")
    attach(pipe, tiny_llm, adapter)
    full = draw(pipe, PROMPTS)
    detach(pipe)
    pipe.to(dtype)
    attach(pipe, tiny_llm, adapter)
    half = draw(pipe, PROMPTS)
    assert torch.isfinite(half).all()
    # Random weights amplify rounding: what matters is that pictures are the same ones.
    assert (half - full).abs().mean() < 0.05


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_draws_the_same(family: str, how: str, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    pipe = BUILDERS[family]()
    tiny_llm.to("cuda")
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    expected = draw(pipe, PROMPTS)
    detach(pipe)
    getattr(pipe, how)()
    attach(pipe, tiny_llm, adapter)
    assert (draw(pipe, PROMPTS) - expected).abs().max() < 2e-3
    assert (draw(pipe, PROMPTS) - expected).abs().max() < 2e-3
    detach(pipe)


def test_a_compiled_denoiser_draws_the_same(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    pipe = sd_pipe.to("cuda")
    tiny_llm.to("cuda")
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    expected = draw(pipe, PROMPTS)
    families.denoiser_of(pipe).compile()
    assert (draw(pipe, PROMPTS) - expected).abs().max() < 2e-3


@pytest.mark.parametrize("freed", [False, True])
def test_the_embedded_default_draws_the_cpus_picture(freed: bool) -> None:
    prompt = "a robot to the left of a red apple"

    def picture(device: str, **more: Any) -> np.ndarray:
        controller = LLMController.from_pretrained("openmoji", device=device, **more)
        pipe = controller.load_pipeline(device=device)
        pipe.set_progress_bar_config(disable=True)
        with controller.attached(pipe):
            generator = torch.Generator().manual_seed(3)
            image = pipe(prompt, num_inference_steps=12, guidance_scale=3.0, generator=generator).images[0]
        return np.asarray(image, dtype=float)

    apart = np.abs(picture("cuda", free_llm_after_encoding=freed) - picture("cpu"))
    assert apart.mean() < 1.0
    assert np.quantile(apart, 0.99) < 12
