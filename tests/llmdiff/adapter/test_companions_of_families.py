"""LoRA of text encoders, IP-Adapters and callbacks in every family that has them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from peft import LoraConfig
from tiny.families import BUILDERS

from llmdiff.adapter import attach, detach
from llmdiff.errors import ConfigError

Draw = Callable[..., torch.Tensor]


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "chroma"])
def test_lora_of_a_text_encoder_acts_with_the_base_text_only(
    family: str, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    def drawn(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
        without = draw(pipe)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            encoder = getattr(pipe, name, None)
            if encoder is not None:
                linear = {path.rpartition(".")[2] for path, _ in encoder.named_modules()} & {"q_proj", "q"}
                encoder.add_adapter(LoraConfig(r=2, target_modules=sorted(linear), init_lora_weights=False))
        return without, draw(pipe)

    pipe = BUILDERS[family]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    without, beside = drawn(pipe)
    assert torch.equal(beside, without)
    pipe = BUILDERS[family]()
    if family == "chroma":  # its text rows have positions
        with pytest.raises(ConfigError, match="keep_base_text"):
            attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm), keep_base_text=True)
        return
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm), keep_base_text=True)
    without, beside = drawn(pipe)
    assert (beside - without).abs().max() > 1e-4


def load_joint_ip_adapter(pipe: Any) -> dict[str, Any]:
    """Give a joint transformer a random IP-Adapter; return the arguments that make it read a picture."""
    denoiser = pipe.transformer
    if isinstance(pipe, StableDiffusion3Pipeline):
        width = denoiser.config.attention_head_dim * denoiser.config.num_attention_heads
        sizes = {"head_dim": denoiser.config.attention_head_dim, "timesteps_emb_dim": 8}
        denoiser.set_attn_processor({
            name: SD3IPAdapterJointAttnProcessor2_0(hidden_size=width, ip_hidden_states_dim=width, **sizes)
            for name in denoiser.attn_processors
        })  # fmt: skip
        denoiser.image_proj = IPAdapterTimeImageProjection(
            embed_dim=6, output_dim=width, hidden_dim=8, depth=1, dim_head=4, heads=2, num_queries=2, timestep_in_dim=8
        ).eval()  # fmt: skip
        return {"ip_adapter_image_embeds": torch.randn(2, 3, 6)}
    width, text_width = denoiser.inner_dim, denoiser.config.joint_attention_dim
    weights = {}
    for index in range(sum("single" not in name for name in denoiser.attn_processors)):
        for part in ("k", "v"):
            weights[f"{index}.to_{part}_ip.weight"] = torch.randn(width, text_width) * 0.3
            weights[f"{index}.to_{part}_ip.bias"] = torch.randn(width) * 0.3
    proj = {
        "proj.weight": torch.randn(4 * text_width, 6),
        "proj.bias": torch.randn(4 * text_width),
        "norm.weight": torch.ones(text_width),
        "norm.bias": torch.zeros(text_width),
    }
    denoiser._load_ip_adapter_weights([{"image_proj": proj, "ip_adapter": weights}])
    return {
        "ip_adapter_image_embeds": [torch.randn(1, 1, 6)],
        "negative_ip_adapter_image_embeds": [torch.zeros(1, 1, 6)],
    }


@pytest.mark.parametrize("family", ["sd3", "flux", "chroma"])
@pytest.mark.parametrize("loaded_first", [True, False])
def test_an_ip_adapter_of_a_joint_transformer(
    family: str, tiny_llm: Any, make_adapter: Any, draw: Draw, loaded_first: bool
) -> None:
    pipe = BUILDERS[family]()
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    plain = draw(pipe)
    if loaded_first:
        detach(pipe)
    pictures = load_joint_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(1.0)
    if loaded_first:
        base = draw(pipe, **pictures)
        attach(pipe, tiny_llm, adapter)
        assert (draw(pipe, **pictures) - base).abs().max() > 1e-3  # the LLM is read beside the picture
    ours = draw(pipe, **pictures)
    assert (ours - plain).abs().max() > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    assert (draw(pipe, **pictures) - plain).abs().max() < 1e-4
    pipe.set_ip_adapter_scale(1.0)
    assert torch.allclose(draw(pipe, **pictures), ours, atol=1e-5)
    detach(pipe)
    if loaded_first:
        assert torch.equal(draw(pipe, **pictures), base)


@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "pixart"])
def test_a_callback_reads_and_changes_latents(
    family: str, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    pipe = BUILDERS[family]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    seen: list[torch.Tensor] = []

    def read(pipe: Any, step: int, time: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(given["latents"].clone())
        return {}

    def turn(pipe: Any, step: int, time: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": -given["latents"]} if step == 0 else {}

    usual = draw(pipe)
    read_alone = draw(pipe, callback_on_step_end=read)
    assert torch.equal(read_alone, usual)
    assert len(seen) > 1
    assert not torch.equal(seen[0], seen[-1])
    assert (draw(pipe, callback_on_step_end=turn) - usual).abs().max() > 1e-3
    assert torch.equal(draw(pipe), usual)
