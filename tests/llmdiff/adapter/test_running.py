"""Ways to run a pipeline that keep working while the LLM is attached: offload, slicing, tiling, compiling."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from tiny.families import BUILDERS

from llmdiff.adapter import FAMILIES, LLMDiffAdapter, attach, detach
from llmdiff.errors import UnsupportedPipelineError

Draw = Callable[..., torch.Tensor]


@pytest.mark.parametrize("family", list(BUILDERS))
@pytest.mark.parametrize("offloaded_first", [True, False])
def test_model_offload_and_attach_in_any_order(
    tiny_llm: Any, make_adapter: Any, draw: Draw, family: str, offloaded_first: bool
) -> None:
    # On the CPU nothing moves, but the hooks of accelerate are those of a GPU.
    pipe = BUILDERS[family]()
    base = draw(pipe)
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    ours = draw(pipe)
    if offloaded_first:
        detach(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    if offloaded_first:
        attach(pipe, tiny_llm, adapter)
    # After every picture diffusers takes its hooks off and puts them on again.
    assert torch.equal(draw(pipe), ours)
    assert torch.equal(draw(pipe), ours)
    detach(pipe)
    assert torch.equal(draw(pipe), base)
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), base)


def test_attention_slicing_before_and_while_attached(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    attach(pipe, tiny_llm, loud_adapter)
    expected = draw(pipe)
    pipe.enable_attention_slicing(1)
    assert any(isinstance(p, SlicedAttnProcessor) for p in pipe.unet.attn_processors.values())
    assert torch.allclose(draw(pipe), expected, atol=1e-4)
    detach(pipe)
    attach(pipe, tiny_llm, loud_adapter)
    assert torch.allclose(draw(pipe), expected, atol=1e-4)
    pipe.disable_attention_slicing()
    assert torch.allclose(draw(pipe), expected, atol=1e-4)


def test_a_foreign_processor_set_while_attached_is_named(attached: Any, draw: Draw) -> None:
    class Foreign(AttnProcessor2_0):
        pass

    attached.unet.set_attn_processor(Foreign())
    with pytest.raises(UnsupportedPipelineError, match="Foreign"):
        draw(attached)
    attached.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.isfinite(draw(attached)).all()


def test_vae_slicing_and_tiling(attached: Any, draw: Draw) -> None:
    expected = draw(attached, ["a cat", "a dog"])
    attached.vae.enable_slicing()
    assert torch.allclose(draw(attached, ["a cat", "a dog"]), expected, atol=1e-4)
    size = {"height": 64, "width": 64}
    seeded = torch.Generator().manual_seed(5)
    latents = attached(
        "a cat", num_inference_steps=2, generator=[seeded], output_type="latent", **size
    ).images
    attached.vae.enable_tiling()
    picture = draw(attached, **size)
    with torch.no_grad():
        tiled = attached.vae.tiled_decode(latents / attached.vae.config.scaling_factor).sample
    assert torch.allclose(picture[0], (tiled[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("family", list(BUILDERS))
def test_two_adapters_in_turn(family: str, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    pipe = BUILDERS[family]()
    first, second = (make_adapter(pipe, tiny_llm) for _ in range(2))
    pictures = []
    for adapter in (first, second, first):
        attach(pipe, tiny_llm, adapter)
        pictures.append(draw(pipe))
        detach(pipe)
    assert torch.equal(pictures[0], pictures[2])
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", list(BUILDERS))
def test_pipelines_share_an_llm(
    family: str, sd_pipe: Any, sdxl_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    alone = []
    others = [BUILDERS[family](), sd_pipe, sdxl_pipe]
    adapters = [make_adapter(other, tiny_llm) for other in others]
    for other, adapter in zip(others, adapters, strict=True):
        attach(other, tiny_llm, adapter)
        alone.append(draw(other))
        detach(other)
    for other, adapter in zip(others, adapters, strict=True):
        attach(other, tiny_llm, adapter)
    together = [draw(other) for other in others]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    detach(others[0])
    assert all(torch.equal(draw(other), a) for other, a in zip(others[1:], alone[1:], strict=True))


@pytest.mark.slow
def test_a_compiled_denoiser(pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    base = draw(pipe)
    adapters = [make_adapter(pipe, tiny_llm) for _ in range(2)]
    eager = []
    for adapter in adapters:
        attach(pipe, tiny_llm, adapter)
        eager.append(draw(pipe))
        detach(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    assert (draw(pipe) - base).abs().max() < 1e-4
    # Compiled code of another adapter, or of none, must not be what runs.
    for adapter, expected in zip(adapters, eager, strict=True):
        attach(pipe, tiny_llm, adapter)
        assert (draw(pipe) - expected).abs().max() < 1e-4
        detach(pipe)
    assert (draw(pipe) - base).abs().max() < 1e-4


# Every kind that diffusers calls interchangeable, and those made for few steps. Two are left out: DPMSolverSDE
# draws its noise for the batch, with a package of its own; EDMEuler wants another U-Net.
DENOISING = [kind.name for kind in KarrasDiffusionSchedulers] + ["LCMScheduler", "TCDScheduler"]
DENOISING = [name for name in DENOISING if name not in ("DPMSolverSDEScheduler", "EDMEulerScheduler")]
FLOW = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]
SOME = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
# What a family's pipelines take, where that is not `FLOW`.
TAKEN = {
    **dict.fromkeys(("sd", "sdxl"), DENOISING),
    **dict.fromkeys(("pixart", "latte"), SOME),
    "sana-sprint": ["SCMScheduler"],
    "wan": ["UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"],
    # They set their own sigmas, which Heun's does not take.
    **dict.fromkeys(
        ("flux", "chroma", "ltx", "cogview4", "qwen-image", "flux2", "hunyuan-image", "lumina2", "z-image"),
        FLOW[::2],
    ),
}
CASES = [(family.name, name) for family in FAMILIES for name in TAKEN.get(family.name, FLOW)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_scheduler(family: str, name: str, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    pipe = BUILDERS[family]()
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    except ImportError as error:  # LMSDiscrete needs scipy
        pytest.skip(str(error).strip())

    def picture(prompt: Any = "a cat") -> torch.Tensor:
        torch.manual_seed(3)  # some pipelines leave a scheduler's noise to the global generator
        # Sana-Sprint's second time step is fixed for two steps only.
        return draw(pipe, prompt, steps=2 if family == "sana-sprint" else 4)

    base = picture()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    ours = picture()
    assert (ours - base).abs().max() > 1e-4
    pair = picture(["a cat", "a photo of the red car on the left"])
    assert torch.isfinite(pair).all()
    # The noise of FlowMatchLCM is one draw for the whole batch in transformers' pipelines.
    if name != "FlowMatchLCMScheduler":
        assert (pair[0] - ours[0]).abs().max() < 1e-3
    detach(pipe)
    assert torch.equal(picture(), base)
