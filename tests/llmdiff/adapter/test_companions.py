"""What people already use with their pipelines keeps working while the LLM is attached: SD and SDXL."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)
from diffusers.models.attention_processor import AttnProcessor2_0

from llmdiff.adapter import LLMDiffAdapter, attach, detach, is_attached
from llmdiff.errors import AttachError, UnsupportedPipelineError

Draw = Callable[..., torch.Tensor]


def sibling(pipe: Any, kind: str, **more: Any) -> Any:
    """The same models in the family's pipeline for img2img, inpainting or ControlNet."""
    made = getattr(diffusers, type(pipe).__name__.replace("Pipeline", f"{kind}Pipeline"))
    other = made.from_pipe(pipe, **more)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_image_to_image_and_inpainting(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, kind: str
) -> None:
    other = sibling(pipe, kind)
    given: dict[str, Any] = {"image": torch.rand(1, 3, 32, 32), "strength": 0.9, "steps": 4}
    if kind == "Inpaint":
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., 16:] = 1
        given |= {"mask_image": mask, "height": 32, "width": 32}
    torch.manual_seed(9)
    base = draw(other, **given)
    attach(other, tiny_llm, loud_adapter)
    torch.manual_seed(9)
    ours = draw(other, **given)
    assert ours.shape == (1, 32, 32, 3)
    assert (ours - base).abs().max() > 1e-3
    detach(other)
    torch.manual_seed(9)
    assert torch.equal(draw(other, **given), base)


@pytest.mark.parametrize("auto", [AutoPipelineForImage2Image, AutoPipelineForInpainting])
def test_a_pipeline_made_from_an_attached_one_draws_once_it_is_attached(
    attached: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, auto: Any
) -> None:
    ours = draw(attached)
    other = auto.from_pipe(attached)
    other.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"image": torch.rand(1, 3, 32, 32), "steps": 4}
    if auto is AutoPipelineForInpainting:
        given |= {"mask_image": torch.ones(1, 1, 32, 32), "height": 32, "width": 32}
    with pytest.raises(AttachError, match="attach the same adapter with the same scale to this pipeline too"):
        draw(other, **given)
    with pytest.raises(AttachError, match="another adapter or other settings"):
        attach(other, tiny_llm, loud_adapter, scale=0.5)
    attach(other, tiny_llm, loud_adapter)
    assert torch.isfinite(draw(other, **given)).all()
    detach(other)
    assert torch.equal(draw(attached), ours)


def test_layers_of_pipelines_that_are_gone_are_taken_off(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    attach(sibling(pipe, "Img2Img"), tiny_llm, loud_adapter)
    import gc

    gc.collect()
    attach(pipe, tiny_llm, loud_adapter, scale=0.5)
    assert torch.isfinite(draw(pipe)).all()


@pytest.fixture
def controlnet(pipe: Any) -> Any:
    # Two widths: the control image is twice the latents' size here.
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8)).eval()
    with torch.no_grad():
        # A fresh ControlNet adds exact zeros.
        for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
            torch.nn.init.normal_(block.weight, std=0.3)
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.3)
    return net


def test_a_controlnet_sees_the_aligned_encoding_without_its_padding(
    pipe: Any, controlnet: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    other = sibling(pipe, "ControlNet", controlnet=controlnet)
    given = {"image": torch.rand(1, 3, 32, 32), "height": 32, "width": 32}
    base = draw(other, **given)
    rows = loud_adapter.condition(loud_adapter.context.encode(tiny_llm, ["a red cat"]))[0]  # type: ignore[union-attr]
    inputs: dict[str, Any] = {"controlnet_cond": torch.rand(1, 3, 32, 32)}
    if "XL" in type(pipe).__name__:
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 20), "time_ids": torch.zeros(1, 6)}
    image = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        expected = controlnet(image, 5, rows[..., :24], **inputs).mid_block_res_sample
        attach(other, tiny_llm, loud_adapter)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, 4))
        found = controlnet(image, 5, padded, **inputs).mid_block_res_sample
    assert torch.allclose(found, expected, atol=1e-5)
    alone = draw(other, **given)
    assert (alone - base).abs().max() > 1e-3
    longer = "a photo of the red car on the left and two green apple"
    pair = draw(other, ["a cat", longer], **given | {"image": given["image"].expand(2, -1, -1, -1)})
    assert (pair[0] - alone[0]).abs().max() < 1e-3
    assert not any("forward" in name for name in controlnet.state_dict())
    detach(other)
    assert torch.equal(draw(other, **given), base)
    for scale in (1e-5, 0.5):
        attach(other, tiny_llm, loud_adapter, scale=scale)
        mixed = draw(other, **given)
        detach(other)
        assert torch.isfinite(mixed).all()
        if scale < 0.1:
            assert (mixed - base).abs().max() < 1e-3


def test_two_controlnets_at_once(
    pipe: Any, controlnet: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    other = sibling(pipe, "ControlNet", controlnet=[controlnet, copy.deepcopy(controlnet)])
    given = {"image": [torch.rand(1, 3, 32, 32)] * 2, "height": 32, "width": 32}
    base = draw(other, **given)
    attach(other, tiny_llm, loud_adapter)
    ours = draw(other, **given)
    assert (ours - base).abs().max() > 1e-3
    one_off = draw(other, **given, controlnet_conditioning_scale=[1.0, 0.0])
    assert (one_off - ours).abs().max() > 1e-4
    detach(other)
    assert torch.equal(draw(other, **given), base)


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_a_controlnet_with_a_picture_to_start_from(
    pipe: Any, controlnet: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, kind: str
) -> None:
    other = sibling(pipe, f"ControlNet{kind}", controlnet=controlnet)
    picture = torch.rand(1, 3, 32, 32)
    given: dict[str, Any] = {"image": picture, "control_image": picture, "strength": 0.9, "steps": 4}
    given |= {"height": 32, "width": 32}
    if kind == "Inpaint":
        given["mask_image"] = torch.ones(1, 1, 32, 32)
    torch.manual_seed(9)
    base = draw(other, **given)
    attach(other, tiny_llm, loud_adapter)
    torch.manual_seed(9)
    assert (draw(other, **given) - base).abs().max() > 1e-3
    detach(other)
    torch.manual_seed(9)
    assert torch.equal(draw(other, **given), base)


def test_a_controlnet_that_cannot_be_used_leaves_nothing_attached(
    pipe: Any,
    controlnet: Any,
    tiny_llm: Any,
    loud_adapter: LLMDiffAdapter,
    processors: Any,
    same_objects: Any,
) -> None:
    class Foreign(AttnProcessor2_0):
        pass

    controlnet.set_attn_processor(Foreign())
    other = sibling(pipe, "ControlNet", controlnet=controlnet)
    before = processors(other)
    with pytest.raises(UnsupportedPipelineError, match="Foreign"):
        attach(other, tiny_llm, loud_adapter)
    assert same_objects(other, before)
    assert not is_attached(other)


@pytest.fixture
def lora(pipe: Any, tmp_path: Path) -> Path:
    """A saved LoRA on the attention of the U-Net and the first text encoder."""
    peft = pytest.importorskip("peft")
    twin = copy.deepcopy(pipe)
    layers = {}
    for part, targets in (("unet", ["to_q", "to_k", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        module = getattr(twin, part)
        module.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        layers[f"{part}_lora_layers"] = diffusers.utils.convert_state_dict_to_diffusers(
            peft.get_peft_model_state_dict(module)
        )
    type(twin).save_lora_weights(tmp_path / "lora", **layers)
    return tmp_path / "lora"


def test_lora_load_fuse_and_unload(attached: Any, lora: Path, draw: Draw) -> None:
    ours = draw(attached)
    attached.load_lora_weights(lora)
    with_lora = draw(attached)
    assert (with_lora - ours).abs().max() > 1e-3
    half = draw(attached, cross_attention_kwargs={"scale": 0.5})
    assert (half - with_lora).abs().max() > 1e-4
    attached.fuse_lora()
    assert (draw(attached) - with_lora).abs().max() < 1e-3
    attached.unfuse_lora()
    attached.unload_lora_weights()
    assert (draw(attached) - ours).abs().max() < 1e-4
    detach(attached)


def test_lora_loaded_before_attaching(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, lora: Path, draw: Draw
) -> None:
    attach(pipe, tiny_llm, loud_adapter)
    plain = draw(pipe)
    pipe.load_lora_weights(lora)
    expected = draw(pipe)
    detach(pipe)
    base = draw(pipe)
    attach(pipe, tiny_llm, loud_adapter)
    assert torch.allclose(draw(pipe), expected, atol=1e-5)
    detach(pipe)
    assert torch.equal(draw(pipe), base)
    attach(pipe, tiny_llm, loud_adapter)
    pipe.unload_lora_weights()
    assert torch.allclose(draw(pipe), plain, atol=1e-5)
    detach(pipe)


def test_lora_of_a_text_encoder_needs_the_base_text(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, lora: Path, draw: Draw
) -> None:
    pictures = {}
    for keep in (False, True):
        attach(pipe, tiny_llm, loud_adapter, keep_base_text=keep)
        without = draw(pipe)
        pipe.load_lora_weights(lora)
        pipe.unet.disable_adapters()
        pictures[keep] = (draw(pipe) - without).abs().max()
        pipe.unload_lora_weights()
        detach(pipe)
    # The trigger word's learned meaning lies in the text encoder, which the LLM stands in for.
    assert pictures[False] < 1e-5
    assert pictures[True] > 1e-4


def ip_adapter(pipe: Any, *, picture_width: int = 6) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a random IP-Adapter with 4 tokens a picture."""
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    weights = {}
    for index, name in enumerate(pipe.unet.attn_processors):
        if name in names:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("k", "v"):
                weights[f"{index}.to_{part}_ip.weight"] = torch.randn(width, 24) * 0.3
    proj = {
        "proj.weight": torch.randn(4 * 24, picture_width),
        "proj.bias": torch.randn(4 * 24),
        "norm.weight": torch.ones(24),
        "norm.bias": torch.zeros(24),
    }
    return {"image_proj": proj, "ip_adapter": weights}


@pytest.mark.parametrize("loaded_first", [True, False])
def test_an_ip_adapter_on_top(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, loaded_first: bool
) -> None:
    attach(pipe, tiny_llm, loud_adapter)
    plain = draw(pipe)
    if loaded_first:
        detach(pipe)
    pipe.load_ip_adapter(ip_adapter(pipe), subfolder="", weight_name="", image_encoder_folder=None)
    pictures = {"ip_adapter_image_embeds": [torch.randn(2, 1, 6)]}
    if loaded_first:
        base = draw(pipe, **pictures)
        attach(pipe, tiny_llm, loud_adapter)
    ours = draw(pipe, **pictures)
    assert (ours - plain).abs().max() > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    assert (draw(pipe, **pictures) - plain).abs().max() < 1e-4
    pipe.set_ip_adapter_scale(1.0)
    assert torch.allclose(draw(pipe, **pictures), ours, atol=1e-5)
    if loaded_first:
        detach(pipe)
        assert torch.equal(draw(pipe, **pictures), base)
        return
    pipe.unload_ip_adapter()
    assert torch.allclose(draw(pipe), plain, atol=1e-5)
    detach(pipe)


def test_schedulers_and_callbacks(attached: Any, draw: Draw) -> None:
    before, usual = draw(attached), attached.scheduler
    names = ["prompt_embeds"]
    if "XL" in type(attached).__name__:
        names += ["add_text_embeds", "add_time_ids"]
    for cls in (EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler):
        attached.scheduler = cls.from_config(usual.config)
        widths: list[int] = []

        def end_guidance(
            pipe: Any, step: int, time: Any, given: Any, widths: list[int] = widths
        ) -> dict[str, torch.Tensor]:
            widths.append(given["prompt_embeds"].shape[-1])
            if step != 0:
                return {}
            # As people write it: from here on without the negative half.
            pipe._guidance_scale = 1.0
            return {name: given[name].chunk(2)[-1] for name in names}

        given = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": names}
        image = draw(attached, steps=3, **given)
        assert torch.isfinite(image).all()
        assert widths == [24 + 16] * 3
    attached.scheduler = usual
    assert torch.equal(draw(attached), before)
