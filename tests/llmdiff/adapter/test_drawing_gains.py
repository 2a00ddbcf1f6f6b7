"""Gains of blocks and scales of layers that are chosen while drawing."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny.families import BUILDERS

from llmdiff import Control
from llmdiff.adapter import attach, detach
from llmdiff.adapter.gain_settings import parse_block_gains, parse_layer_scale
from llmdiff.adapter.layers import text_layers
from llmdiff.drawing.models import Models
from llmdiff.errors import ConfigError


def _drawn(draw: Any, pipe: Any, llm: Any, adapter: Any, **control: Any) -> torch.Tensor:
    attach(pipe, llm, adapter, **control)
    try:
        return draw(pipe)
    finally:
        detach(pipe)


@pytest.mark.parametrize("encoding", ["guided", "paper"])
@pytest.mark.parametrize("routing", [1, 2])
@torch.no_grad()
def test_a_factor_of_a_block_is_a_factor_of_its_gains(
    encoding: str, routing: int, sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Any
) -> None:
    adapter = make_adapter(sd_pipe, tiny_llm, encoding=encoding, routing=routing)
    plain = _drawn(draw, sd_pipe, tiny_llm, adapter)
    got = _drawn(draw, sd_pipe, tiny_llm, adapter, block_gains={0: 0.0, 2: -2.5})
    for gains in (adapter.context.gamma, adapter.context.kappa):
        if gains is not None:
            gains[0], gains[2] = 0.0, -2.5
    assert torch.allclose(got, _drawn(draw, sd_pipe, tiny_llm, adapter), atol=1e-5)
    assert not torch.allclose(got, plain, atol=1e-3)


def test_layers_mix_base_and_llm_each_with_its_own_scale(
    pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Any
) -> None:
    adapter = make_adapter(pipe, tiny_llm)
    base, ours = draw(pipe), _drawn(draw, pipe, tiny_llm, adapter)
    half = _drawn(draw, pipe, tiny_llm, adapter, scale=0.5)
    if isinstance(pipe, StableDiffusionPipeline):
        off = {"layer_scale": {"*": 0.0}}
        assert torch.allclose(_drawn(draw, pipe, tiny_llm, adapter, **off), base, atol=1e-5)
    # A pooled vector, as SDXL has one, follows `scale`.
    everywhere = {"scale": 0.5, "layer_scale": {"*": 0.5}}
    assert torch.allclose(_drawn(draw, pipe, tiny_llm, adapter, **everywhere), half, atol=1e-5)
    # The last pattern that matches counts.
    again = {"layer_scale": {"up_blocks.*": 0.0, "*": 1.0}}
    assert torch.allclose(_drawn(draw, pipe, tiny_llm, adapter, **again), ours, atol=1e-5)
    mixed = _drawn(draw, pipe, tiny_llm, adapter, layer_scale={"up_blocks.*": 0.0})
    for other in (base, ours):
        assert not torch.allclose(mixed, other, atol=1e-3)


def test_only_the_named_layers_change(sd_pipe: Any, tiny_llm: Any, make_adapter: Any) -> None:
    names = list(text_layers(sd_pipe.unet))
    attach(sd_pipe, tiny_llm, make_adapter(sd_pipe, tiny_llm), layer_scale={names[1]: 0.25})
    found = vars(sd_pipe)["encode_prompt"].parts[0].layers
    assert {name: layer.scale for name, layer in found.items()} == {
        name: 0.25 if name == names[1] else 1.0 for name in names
    }
    detach(sd_pipe)


def test_pipelines_that_share_a_denoiser_need_the_same_scales(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    other = type(sd_pipe).from_pipe(sd_pipe)
    adapter = make_adapter(sd_pipe, tiny_llm)
    attach(sd_pipe, tiny_llm, adapter, layer_scale={"up_blocks.*": 0.5})
    with pytest.raises(Exception, match="other settings"):
        attach(other, tiny_llm, adapter)
    attach(other, tiny_llm, adapter, layer_scale={"up_blocks.*": 0.5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_gains": {0: 11.0}}, r"block_gains\[0\] is 11.0, expected a number from -10.0 to 10.0"),
        ({"block_gains": {0: float("nan")}}, r"block_gains\[0\] is nan"),
        ({"block_gains": {-1: 1.0}}, "block_gains has the block -1"),
        ({"block_gains": {"0": 1.0}}, "block_gains has the block '0'"),
        ({"layer_scale": {"*": 1.5}}, r"layer_scale\['\*'\] is 1.5, expected a number from 0.0 to 1.0"),
        ({"layer_scale": {3: 1.0}}, "layer_scale has the layers 3"),
        ({"scale": 0.0, "layer_scale": {"*": 1.0}}, "layer_scale is given and scale is 0"),
    ],
)
def test_wrong_numbers_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Control(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_gains": {3: 1.0}}, "block_gains has the block 3, expected 0 to 2: the LLM has 3 blocks"),
        ({"layer_scale": {"blocks.*": 0.5}}, r"layer_scale has 'blocks.\*', which no attention layer"),
    ],
)
def test_what_fits_neither_llm_nor_pipeline_is_refused(
    fields: Any, message: str, sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(sd_pipe, tiny_llm, make_adapter(sd_pipe, tiny_llm), **fields)
    assert "encode_prompt" not in vars(sd_pipe)


def test_layers_of_joint_attention_share_one_text(tiny_llm: Any, make_adapter: Any) -> None:
    pipe = BUILDERS["sd3"]()
    with pytest.raises(ConfigError, match="share one text with the picture"):
        attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm), layer_scale={"*": 0.5})


def test_texts_of_the_command_line() -> None:
    assert parse_block_gains("0-2=0.5, 1=2,7=-1") == {0: 0.5, 1: 2.0, 2: 0.5, 7: -1.0}
    assert parse_layer_scale("down_blocks.*=0.5,mid_block.*=1") == {"down_blocks.*": 0.5, "mid_block.*": 1.0}
    models = Models(block_gains="0-1=0.5", layer_scale="mid_block.*=0")
    assert models.control == Control(block_gains={0: 0.5, 1: 0.5}, layer_scale={"mid_block.*": 0.0})
    assert models.metadata()["block_gains"] == "0-1=0.5"
    assert models.metadata()["layer_scale"] == "mid_block.*=0"


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_block_gains, ""),
        (parse_block_gains, "3"),
        (parse_block_gains, "a=1"),
        (parse_block_gains, "3-1=1"),
        (parse_block_gains, "-1=1"),
        (parse_block_gains, "0-99999999999=1"),
        (parse_block_gains, "0=nan"),
        (parse_layer_scale, "=1"),
        (parse_layer_scale, "up_blocks=much"),
        (parse_layer_scale, "up_blocks=inf"),
    ],
)
def test_other_texts_are_refused_in_one_line(parse: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
