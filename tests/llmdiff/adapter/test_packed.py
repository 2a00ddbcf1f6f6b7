"""A new adapter on a denoiser whose weights are packed or lie elsewhere starts from their true values."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import UNet2DConditionModel
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from gguf import GGMLQuantizationType as Quant
from gguf.quants import dequantize, quantize
from tiny.families import BUILDERS
from tiny.pipelines import build_sd
from torch import nn

from llmdiff.adapter import LLMDiffAdapter, attach, detach, families
from llmdiff.adapter.layers import text_layers
from llmdiff.errors import UnsupportedPipelineError

Draw = Callable[..., torch.Tensor]


def wide_sd() -> Any:
    """A pipeline whose attention has whole blocks of 32 weights, as GGUF packs them."""
    pipe: Any = build_sd(32)
    torch.manual_seed(9)
    pipe.unet = UNet2DConditionModel.from_config(
        {**pipe.unet.config, "block_out_channels": (32, 64), "norm_num_groups": 8}
    ).eval()
    return pipe


def create(pipe: Any, llm: Any) -> LLMDiffAdapter:
    torch.manual_seed(4)
    made: LLMDiffAdapter = LLMDiffAdapter.create(
        pipe, llm_id=llm.id, hidden_size=llm.hidden_size, num_blocks=llm.num_blocks
    )
    return made


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        else:
            replace_linears(child, make)


def as_gguf(kind: Quant, dtype: torch.dtype) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        packed: Any = GGUFLinear(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype
        )
        codes = quantize(linear.weight.detach().float().numpy(), kind)
        packed.weight = GGUFParameter(torch.from_numpy(codes), quant_type=kind)
        packed.bias = linear.bias
        return packed

    return make


def starts(adapter: LLMDiffAdapter) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in adapter.state_dict().items()
        if name.startswith("branches.") and (".to_q." in name or ".to_out." in name)
    }


@pytest.mark.hostile("packed denoisers")
@pytest.mark.parametrize("kind", [Quant.Q8_0, Quant.Q4_0, Quant.BF16], ids=lambda kind: kind.name)
def test_gguf_weights_are_unpacked(kind: Quant, tiny_llm: Any, draw: Draw) -> None:
    pipe = wide_sd()
    expected = {}
    for name, value in starts(create(pipe, tiny_llm)).items():
        numbers = value.numpy()
        # Biases stay as they are, as in GGUF files.
        told = numbers if value.ndim == 1 else dequantize(quantize(numbers, kind), kind)
        expected[name] = torch.from_numpy(np.array(told))
    replace_linears(pipe.unet, as_gguf(kind, torch.float32))
    adapter = create(pipe, tiny_llm)
    found = starts(adapter)
    assert found.keys() == expected.keys()
    # diffusers multiplies codes and scales in float16: a part in 2,048.
    assert all(torch.allclose(found[name], value, rtol=1e-3, atol=1e-7) for name, value in expected.items())
    attach(pipe, tiny_llm, adapter)
    assert torch.isfinite(draw(pipe)).all()
    detach(pipe)


@pytest.mark.hostile("packed denoisers")
@pytest.mark.parametrize("family", list(BUILDERS))
def test_offloaded_weights_are_brought_here(family: str, tiny_llm: Any, draw: Draw) -> None:
    pipe = BUILDERS[family]()
    plain = create(pipe, tiny_llm)
    denoiser = families.denoiser_of(pipe)
    cpu_offload(denoiser, execution_device=torch.device("cpu"))
    assert all(attn.to_q.weight.is_meta for attn in text_layers(denoiser).values())
    adapter = create(pipe, tiny_llm)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in starts(adapter).items())
    assert {parameter.device.type for parameter in adapter.parameters()} == {"cpu"}
    # phi, keys and values start from the same random numbers, to the size of the same texts.
    assert all(
        torch.allclose(value, plain.state_dict()[name]) for name, value in adapter.state_dict().items()
    )
    attach(pipe, tiny_llm, adapter)
    ours = draw(pipe)
    detach(pipe)
    assert (ours - draw(pipe)).abs().max() > 1e-5


@pytest.mark.hostile("packed denoisers")
def test_layers_kept_in_fewer_bits_than_they_compute_in(tiny_llm: Any, draw: Draw) -> None:
    pipe = BUILDERS["sd"]()
    expected = {
        name: value if value.ndim == 1 else value.to(torch.float8_e4m3fn).float()
        for name, value in starts(create(pipe, tiny_llm)).items()
    }
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    adapter = create(pipe, tiny_llm)
    for name, value in starts(adapter).items():
        if value.ndim == 2:
            assert torch.equal(value, expected[name]), name
    attach(pipe, tiny_llm, adapter)
    assert torch.isfinite(draw(pipe)).all()


@pytest.mark.hostile("packed denoisers")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits: int, tiny_llm: Any) -> None:
    bnb = pytest.importorskip("bitsandbytes")

    def packed(linear: nn.Linear) -> nn.Module:
        made: Any
        bias = linear.bias is not None
        if bits == 8:
            made = bnb.nn.Linear8bitLt(
                linear.in_features, linear.out_features, bias, has_fp16_weights=False, threshold=6.0
            )
            made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            made = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, bias, compute_dtype=torch.float32, quant_type="nf4"
            )
            made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        made.bias = linear.bias
        return made.to("cpu")

    pipe = BUILDERS["sd"]()
    plain = starts(create(pipe, tiny_llm))
    replace_linears(pipe.unet, packed)
    _about_equal(starts(create(pipe, tiny_llm)), plain, share=0.25 if bits == 4 else 0.01)


@pytest.mark.hostile("packed denoisers")
def test_torchao(tiny_llm: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipe = BUILDERS["sd"]()
    plain = starts(create(pipe, tiny_llm))
    quantization.quantize_(pipe.unet, quantization.Int8WeightOnlyConfig())
    _about_equal(starts(create(pipe, tiny_llm)), plain, share=0.01)


def _about_equal(found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], *, share: float) -> None:
    """Every tensor within `share` of its largest value: what rounding to so few bits leaves."""
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert (found[name] - value).abs().max() <= share * value.abs().max(), name


@pytest.mark.hostile("packed denoisers")
def test_a_layer_without_a_weight_is_refused_by_name(tiny_llm: Any) -> None:
    pipe = BUILDERS["sd"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.unet = torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear})
    with pytest.raises(UnsupportedPipelineError, match="attn2 is a Linear whose weight cannot be read"):
        create(pipe, tiny_llm)


@pytest.mark.hostile("packed denoisers")
def test_weights_that_are_nowhere_are_refused_by_name(tiny_llm: Any) -> None:
    pipe = BUILDERS["sd"]()
    layers: Any = text_layers(pipe.unet)
    for attn in layers.values():
        attn.to_q.to("meta")
    with pytest.raises(UnsupportedPipelineError, match="attn2 is a Linear whose weight cannot be read"):
        create(pipe, tiny_llm)
