"""Routing: groups of attention layers that read the LLM's blocks with gains of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS

from llmdiff.adapter import LLMDiffAdapter, attach, detach
from llmdiff.adapter.families import denoiser_of
from llmdiff.adapter.installation import install
from llmdiff.adapter.layer_groups import layer_groups
from llmdiff.adapter.layers import text_layers
from llmdiff.errors import AdapterMismatchError, ConfigError
from llmdiff.types import TextEncoding

# One of each way in which text reaches the layers, of those whose tiny model has several layers.
FAMILIES = ("sd", "sdxl", "pixart", "wan", "sd3", "qwen-image", "z-image")
PROMPTS = ["a red cat", "two green apple on the left of a car"]


def _adapter(make_adapter: Any, pipe: Any, llm: Any, **more: Any) -> LLMDiffAdapter:
    torch.manual_seed(0)
    made = make_adapter(pipe, llm, **more)
    made.context.calibrate(llm, PROMPTS)
    return made


def _routed_gains(adapter: LLMDiffAdapter) -> list[torch.Tensor]:
    routed: Any = adapter.context.routed
    return [parameter.data for parameter in routed.parameters()]


def _spread(adapter: LLMDiffAdapter) -> LLMDiffAdapter:
    """Set gains of the groups that are all different."""
    for gains in _routed_gains(adapter):
        gains.copy_(torch.linspace(-3, 3, gains.numel()).view(gains.T.shape).T)
    return adapter


def _drawn(draw: Any, pipe: Any, llm: Any, adapter: LLMDiffAdapter, **control: Any) -> torch.Tensor:
    attach(pipe, llm, adapter, **control)
    try:
        return draw(pipe)
    finally:
        detach(pipe)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["signed", "softmax"])
def test_a_new_routed_adapter_draws_what_an_unrouted_one_draws(
    family: str, form: str, tiny_llm: Any, make_adapter: Any, draw: Any
) -> None:
    pipe = BUILDERS[family]()
    layers = len(text_layers(denoiser_of(pipe)))
    plain = _adapter(make_adapter, pipe, tiny_llm)
    routed = _adapter(make_adapter, pipe, tiny_llm, routing=layers, routing_form=form)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, routed.state_dict()[name]), name
    expected = _drawn(draw, pipe, tiny_llm, plain)
    assert torch.allclose(_drawn(draw, pipe, tiny_llm, routed), expected, atol=1e-4)
    assert not torch.allclose(_drawn(draw, pipe, tiny_llm, _spread(routed)), expected, atol=1e-3)


@pytest.mark.parametrize("control", [{"scale": 0.5}, {"keep_base_text": True}])
def test_the_bases_text_stands_beside_the_groups(
    control: Any, sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Any
) -> None:
    plain = _adapter(make_adapter, sd_pipe, tiny_llm)
    routed = _adapter(make_adapter, sd_pipe, tiny_llm, routing=2)
    expected = _drawn(draw, sd_pipe, tiny_llm, plain, **control)
    assert torch.allclose(_drawn(draw, sd_pipe, tiny_llm, routed, **control), expected, atol=1e-4)


@pytest.mark.parametrize("form", ["signed", "softmax"])
def test_every_layer_reads_the_encoding_of_its_own_group(
    form: str, sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    names = list(text_layers(sd_pipe.unet))
    routed = _spread(_adapter(make_adapter, sd_pipe, tiny_llm, routing=len(names), routing_form=form))
    plain = _adapter(make_adapter, sd_pipe, tiny_llm)
    groups = layer_groups(names, len(names))
    states = routed.condition(routed.context.encode(tiny_llm, PROMPTS))[0]
    for name in names:
        width = sd_pipe.unet.get_submodule(name).to_q.in_features
        image = torch.randn(2, 9, width)
        with torch.no_grad(), install(sd_pipe.unet, routed):
            got = sd_pipe.unet.get_submodule(name)(image, states)
        # An adapter without routing whose gains are those of the group.
        with torch.no_grad():
            shared = (plain.context.gamma, plain.context.kappa)
            for gains, own in zip(shared, _routed_gains(routed), strict=True):
                column = own[:, groups[name]]
                gains.copy_(1 + column if form == "signed" else len(own) * column.exp() / column.exp().sum())
            alone = plain.condition(plain.context.encode(tiny_llm, PROMPTS))[0]
        with torch.no_grad(), install(sd_pipe.unet, plain):
            expected = sd_pipe.unet.get_submodule(name)(image, alone)
        assert torch.allclose(got, expected, atol=1e-5), name


def test_saved_and_loaded(tmp_path: Path, sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Any) -> None:
    made = _spread(_adapter(make_adapter, sd_pipe, tiny_llm, routing=2, routing_form="softmax"))
    made.save_pretrained(tmp_path)
    loaded = LLMDiffAdapter.from_pretrained(tmp_path)
    assert (loaded.config.routing, loaded.config.routing_form) == (2, "softmax")
    assert torch.equal(_drawn(draw, sd_pipe, tiny_llm, loaded), _drawn(draw, sd_pipe, tiny_llm, made))


def test_an_adapter_saved_before_routing_loads(
    tmp_path: Path, sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    made = _adapter(make_adapter, sd_pipe, tiny_llm)
    config = {name: value for name, value in made.config.items() if not name.startswith(("_", "routing"))}
    assert LLMDiffAdapter(**config).config.routing == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routing": 0}, "routing"),
        ({"routing": 10**9}, "routing"),
        ({"routing": True}, "routing"),
        ({"routing": 50}, "routing is 50, expected at most 4"),
        ({"routing": 2, "routing_form": "random"}, "routing_form"),
    ],
)
def test_wrong_settings_are_refused(
    change: Any, message: str, sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    config = {name: value for name, value in make_adapter(sd_pipe, tiny_llm).config.items() if name[0] != "_"}
    assert json.dumps(config)
    with pytest.raises(ConfigError, match=message):
        LLMDiffAdapter(**{**config, **change})


def test_an_encoding_of_another_number_of_groups_is_refused(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    adapter = make_adapter(sd_pipe, tiny_llm, routing=2)
    plain = TextEncoding(
        states=torch.zeros(1, 3, tiny_llm.hidden_size), token_mask=torch.ones(1, 3, dtype=torch.bool)
    )
    with pytest.raises(AdapterMismatchError, match="has 1 groups of attention layers"):
        adapter.condition(plain)


UNET = [
    *(f"down_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2" for i in (0, 1) for j in (0, 1)),
    *(f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2" for i in (1, 2) for j in (0, 1, 2)),
    "mid_block.attentions.0.transformer_blocks.0.attn2",
]


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [(1, [11]), (2, [5, 6]), (3, [5, 3, 3]), (5, [2, 2, 1, 3, 3]), (6, [2, 2, 1, 1, 2, 3]), (11, [1] * 11)],
)
def test_a_unets_groups_are_cut_by_resolution_then_depth(groups: int, sizes: list[int]) -> None:
    order = sorted(UNET, key=lambda name: ("down", "mid_", "up_b").index(name[:4]))
    found = layer_groups(UNET, groups)
    expected = [group for group, size in enumerate(sizes) for _ in range(size)]
    assert [found[name] for name in order] == expected
    # A saved config has its layers in another order.
    assert layer_groups(sorted(UNET), groups) == found


def test_a_transformers_groups_are_cut_by_kind_of_block_then_depth() -> None:
    names = [f"single_transformer_blocks.{i}.attn" for i in range(12)]
    names += [f"transformer_blocks.{i}.attn" for i in range(12)]
    found = layer_groups(names, 3)
    assert [found[f"transformer_blocks.{i}.attn"] for i in (0, 5, 6, 10, 11)] == [0, 0, 1, 1, 1]
    assert {found[f"single_transformer_blocks.{i}.attn"] for i in range(12)} == {2}


def test_more_groups_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="routing is 3, expected 1 to 2"):
        layer_groups(["blocks.0.attn", "blocks.1.attn"], 3)
