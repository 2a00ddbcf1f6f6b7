"""Ways to run a pipeline that keep working while the LLM is attached: offload, slicing, tiling, compiling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from tiny_families import BUILDERS

from llmdiff.adapter import LLMDiffAdapter, attach, detach
from llmdiff.errors import UnsupportedPipelineError

Draw = Callable[..., torch.Tensor]


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("offloaded_first", [True, False])
def test_model_offload_and_attach_in_any_order(
    tiny_llm: Any, make_adapter: Any, draw: Draw, name: str, offloaded_first: bool
) -> None:
    # On the CPU nothing moves, but the hooks of accelerate are those of a GPU.
    pipe = BUILDERS[name]()
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
    attached.vae.enable_tiling()
    assert draw(attached, height=64, width=64).shape == (1, 64, 64, 3)


def test_two_adapters_in_turn_and_pipelines_that_share_an_llm(
    sd_pipe: Any, sdxl_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    first, second = (make_adapter(sd_pipe, tiny_llm) for _ in range(2))
    pictures = []
    for adapter in (first, second, first):
        attach(sd_pipe, tiny_llm, adapter)
        pictures.append(draw(sd_pipe))
        detach(sd_pipe)
    assert torch.equal(pictures[0], pictures[2])
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    attach(sd_pipe, tiny_llm, first)
    attach(sdxl_pipe, tiny_llm, make_adapter(sdxl_pipe, tiny_llm))
    draw(sdxl_pipe, "two dog")
    assert torch.equal(draw(sd_pipe), pictures[0])


@pytest.mark.slow
def test_a_compiled_denoiser(sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    base = draw(sd_pipe)
    adapters = [make_adapter(sd_pipe, tiny_llm) for _ in range(2)]
    eager = []
    for adapter in adapters:
        attach(sd_pipe, tiny_llm, adapter)
        eager.append(draw(sd_pipe))
        detach(sd_pipe)
    sd_pipe.unet = torch.compile(sd_pipe.unet, backend="aot_eager")
    assert (draw(sd_pipe) - base).abs().max() < 1e-4
    # Compiled code of another adapter, or of none, must not be what runs.
    for adapter, expected in zip(adapters, eager, strict=True):
        attach(sd_pipe, tiny_llm, adapter)
        assert (draw(sd_pipe) - expected).abs().max() < 1e-4
        detach(sd_pipe)
    assert (draw(sd_pipe) - base).abs().max() < 1e-4
