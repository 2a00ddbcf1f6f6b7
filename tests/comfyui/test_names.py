"""Names of ComfyUI's U-Net against diffusers' own converter of original checkpoints."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from comfyui.names import attention_layers, block_names, comfy_config, comfy_state_dict
from llmdiff.adapter import layers
from llmdiff.errors import UnsupportedPipelineError

SD15: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": 2,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (8, 16, 32),
    "layers_per_block": 2,
    "cross_attention_dim": 12,
    "attention_head_dim": (2, 4, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
}
SMALL: dict[str, Any] = {
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": (2, 4, 6),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
CONFIGS = pytest.mark.parametrize("config", [SD15, SDXL, SMALL], ids=["sd15", "sdxl", "small"])


def weight_and_bias(*modules: str) -> Iterator[str]:
    for module in modules:
        yield f"{module}.weight"
        yield f"{module}.bias"


def resnet(place: str, *, shortcut: bool) -> Iterator[str]:
    parts = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    yield from weight_and_bias(*(f"{place}.{part}" for part in parts + ["skip_connection"] * shortcut))


def transformer(place: str, depth: int) -> Iterator[str]:
    yield from weight_and_bias(f"{place}.norm", f"{place}.proj_in", f"{place}.proj_out")
    for index in range(depth):
        block = f"{place}.transformer_blocks.{index}"
        yield from weight_and_bias(*(f"{block}.norm{number}" for number in (1, 2, 3)))
        yield from weight_and_bias(f"{block}.ff.net.0.proj", f"{block}.ff.net.2")
        for attention in ("attn1", "attn2"):
            yield from (f"{block}.{attention}.{part}.weight" for part in ("to_q", "to_k", "to_v"))
            yield from weight_and_bias(f"{block}.{attention}.to_out.0")


def original_names(unet: Any) -> list[str]:
    """The weights' names in a checkpoint of the original code, counted block by block."""
    names = list(weight_and_bias("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"))
    if unet.config.addition_embed_type:
        names += weight_and_bias("label_emb.0.0", "label_emb.0.2")
    number = 1
    for block in unet.down_blocks:
        for index, part in enumerate(block.resnets):
            names += resnet(f"input_blocks.{number}.0", shortcut=part.conv_shortcut is not None)
            if hasattr(block, "attentions"):
                depth = len(block.attentions[index].transformer_blocks)
                names += transformer(f"input_blocks.{number}.1", depth)
            number += 1
        if block.downsamplers:
            names += weight_and_bias(f"input_blocks.{number}.0.op")
            number += 1
    names += resnet("middle_block.0", shortcut=False)
    names += transformer("middle_block.1", len(unet.mid_block.attentions[0].transformer_blocks))
    names += resnet("middle_block.2", shortcut=False)
    number = 0
    for block in unet.up_blocks:
        for index, part in enumerate(block.resnets):
            names += resnet(f"output_blocks.{number}.0", shortcut=part.conv_shortcut is not None)
            place = 1
            if hasattr(block, "attentions"):
                depth = len(block.attentions[index].transformer_blocks)
                names += transformer(f"output_blocks.{number}.1", depth)
                place = 2
            if block.upsamplers and index == len(block.resnets) - 1:
                names += weight_and_bias(f"output_blocks.{number}.{place}.conv")
            number += 1
    return names


@pytest.fixture
def unet(config: dict[str, Any]) -> Any:
    return UNet2DConditionModel(**config)


@CONFIGS
def test_weights_are_those_of_diffusers_own_converter(unet: Any) -> None:
    weights = unet.state_dict()
    renamed = comfy_state_dict(original_names(unet), weights)
    checkpoint = {f"model.diffusion_model.{name}": weight for name, weight in renamed.items()}
    back = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@CONFIGS
def test_every_cross_attention_layer_has_one_place(unet: Any) -> None:
    found = attention_layers(original_names(unet))
    assert found.keys() == layers.text_layers(unet).keys()
    assert len(set(found.values())) == len(found)


def test_places_of_sd15_are_the_known_ones() -> None:
    found = attention_layers(original_names(UNet2DConditionModel(**SD15)))
    blocks = {
        side: sorted(block for at, block, _ in found.values() if at == side) for side in ("input", "output")
    }
    # The numbers that ComfyUI's node packs for Stable Diffusion 1.5 patch.
    assert blocks == {"input": [1, 2, 4, 5, 7, 8], "output": [3, 4, 5, 6, 7, 8, 9, 10, 11]}
    assert found["down_blocks.1.attentions.1.transformer_blocks.0.attn2"] == ("input", 5, 0)
    assert found["mid_block.attentions.0.transformer_blocks.0.attn2"] == ("middle", 0, 0)
    assert found["up_blocks.3.attentions.2.transformer_blocks.0.attn2"] == ("output", 11, 0)


def test_places_of_sdxl_are_the_known_ones() -> None:
    found = attention_layers(original_names(UNet2DConditionModel(**SDXL)))
    assert found["down_blocks.2.attentions.0.transformer_blocks.2.attn2"] == ("input", 7, 2)
    assert found["up_blocks.1.attentions.2.transformer_blocks.1.attn2"] == ("output", 5, 1)


def test_a_change_of_resolution_ends_a_level() -> None:
    names = block_names(original_names(UNet2DConditionModel(**SD15)))
    assert names["input_blocks.3.0"] == "down_blocks.0.downsamplers.0"
    assert names["output_blocks.2.1"] == "up_blocks.0.upsamplers.0"
    assert names["output_blocks.5.2"] == "up_blocks.1.upsamplers.0"


def test_weights_of_another_layout_are_refused() -> None:
    unet = UNet2DConditionModel(**SMALL)
    weights = dict(unet.state_dict()) | {"encoder_hid_proj.weight": torch.zeros(1)}
    with pytest.raises(UnsupportedPipelineError, match=r"encoder_hid_proj\.weight"):
        comfy_state_dict(original_names(unet), weights)


def test_heads_of_neither_one_number_nor_one_width_are_refused() -> None:
    config = dict(UNet2DConditionModel(**SMALL).config) | {"attention_head_dim": (2, 2, 6)}
    with pytest.raises(UnsupportedPipelineError, match="heads for"):
        comfy_config(config)
