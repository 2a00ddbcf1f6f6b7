"""Put an adapter on ComfyUI's MODEL: check that it fits, add the hooks and hand its weights to the memory manager."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llmdiff.adapter import LLMDiffAdapter
from llmdiff.checks.bounds import SCALE, short
from llmdiff.errors import (
    AdapterMismatchError,
    AttachError,
    ConfigError,
    NonFinitePictureError,
    UnsupportedPipelineError,
)

from .attention import Attention, TextAttention
from .names import Layer, attention_layers

KEY = "llmdiff"
# Keys of a conditioning's options beside ComfyUI's own; samplers pass them on unread.
ADAPTER_KEY = "llmdiff_adapter"
BASE_POOLED_KEY = "llmdiff_base_pooled"

_FAMILIES = ("sd", "sdxl")
_SIZE_EMBEDDING = 6 * 256  # SDXL's six sizes and crops, each as 256 sinusoids


def apply_adapter(
    model: Any,
    adapter: LLMDiffAdapter,
    digest: str,
    *,
    scale: float,
    keep_base_text: bool,
    start_percent: float,
    end_percent: float,
    gains: Mapping[str, float],
) -> Any:
    """Return a clone of ComfyUI's MODEL whose cross-attention has the adapter's second branch.

    `digest` identifies the adapter; sampling checks it against that of the conditioning.

    Raises:
        UnsupportedPipelineError: the MODEL has no U-Net with cross-attention.
        AdapterMismatchError: the adapter was made for another U-Net.
        AttachError: the MODEL has an adapter already.
        ConfigError: a number is out of range.
    """
    import comfy.ldm.modules.attention as comfy_attention
    from comfy.model_patcher import ModelPatcher
    from comfy.patcher_extension import WrappersMP

    for name, value in (("scale", scale), ("start_percent", start_percent), ("end_percent", end_percent)):
        if not SCALE.holds(value):
            raise ConfigError(f"{name} is {short(value)}, expected a number from 0 to 1")
    if start_percent >= end_percent:
        raise ConfigError(
            f"start_percent is {start_percent:g} and end_percent {end_percent:g}: expected start below end"
        )
    if KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        raise AttachError(
            "the MODEL has an LLMDiff adapter already: connect Apply LLMDiff to the MODEL before it"
        )
    unet = model.model.diffusion_model
    layers = check_model(unet, adapter)
    place = {"dtype": _compute_dtype(model.model), "device": model.offload_device}
    branches = {layer: copy.deepcopy(adapter.branch(name)).to(**place) for name, layer in layers.items()}

    def attention(query: Any, key: Any, value: Any, extra: Any) -> Any:
        return comfy_attention.optimized_attention(
            query, key, value, extra["n_heads"], attn_precision=extra.get("attn_precision")
        )

    config: Any = adapter.config
    sampling = model.get_model_object("model_sampling")
    hooks = TextAttention(
        branches,
        text_width=config.text_width,
        hidden_size=config.hidden_size,
        attention=attention,
        scale=float(scale),
        keep_base_text=keep_base_text,
        gains=gains,
        start_sigma=float(sampling.percent_to_sigma(start_percent)),
        end_sigma=float(sampling.percent_to_sigma(end_percent)),
    )
    patched = model.clone()
    patched.set_additional_models(
        KEY,
        [
            ModelPatcher(
                nn.ModuleList(branches.values()),
                load_device=model.load_device,
                offload_device=model.offload_device,
            )
        ],
    )
    found = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    before = dict(found)
    # Before those of other extensions, which then see text of the model's own width, and the output of both branches.
    patches = patched.model_options["transformer_options"].setdefault("patches", {})
    for name, hook in (("attn2_patch", hooks.before), ("attn2_output_patch", hooks.after)):
        patches[name] = [hook, *patches.get(name, [])]
    for side, block, index in layers.values():
        previous: Attention | None = before.get((side, block, index)) or before.get((side, block))
        patched.set_model_attn2_replace(hooks.replacing(previous), side, block, transformer_index=index)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Sampling(digest, hooks, set(before)))
    return patched


def check_model(unet: Any, adapter: LLMDiffAdapter) -> dict[str, Layer]:
    """Return the layers of ComfyUI's U-Net for the adapter's cross-attention layers, by diffusers' names.

    Raises:
        UnsupportedPipelineError: it is no U-Net of Stable Diffusion 1.x, 2.x or XL, or the adapter is for no such one.
        AdapterMismatchError: the adapter was made for another U-Net.
    """
    config: Any = adapter.config
    if config.family not in _FAMILIES:
        raise UnsupportedPipelineError(
            f"the adapter is for the family {config.family!r}: in ComfyUI, adapters for Stable Diffusion 1.x, 2.x and "
            "XL work; draw with this one in diffusers"
        )
    if config.routing > 1:
        raise UnsupportedPipelineError(
            f"the adapter has routing {config.routing}: in ComfyUI, adapters work whose layers all read one encoding; "
            "draw with this one in diffusers"
        )
    if not hasattr(unet, "input_blocks"):
        raise UnsupportedPipelineError(
            f"the MODEL is a {type(unet).__name__}, expected a U-Net of Stable Diffusion 1.x, 2.x or XL: load the base "
            f"model that the adapter was trained for, {config.base_model_id!r}"
        )
    remedy = (
        f"load the base model that the adapter was trained for, {config.base_model_id!r}, or one made from it"
    )
    weights = dict(unet.named_parameters())
    layers = attention_layers(weights)
    expected = config.cross_attention
    different = sorted(set(layers) ^ set(expected))
    if different:
        raise AdapterMismatchError(
            f"the MODEL has {len(layers)} cross-attention layers, the adapter was made for {len(expected)} "
            f"({different[0]} is in one of them only): {remedy}"
        )
    for name, layer in layers.items():
        attn = unet.get_submodule(_module(layer)).transformer_blocks[layer[2]].attn2
        width = attn.to_k.in_features
        if width != config.text_width:
            raise AdapterMismatchError(
                f"the MODEL takes text of width {width}, the adapter makes {config.text_width}: {remedy}"
            )
        row = {
            "query_dim": attn.to_q.in_features,
            "inner_dim": attn.to_q.out_features,
            "heads": attn.heads,
            "out_dim": attn.to_out[0].out_features,
            "query_bias": attn.to_q.bias is not None,
            "out_bias": attn.to_out[0].bias is not None,
        }
        if row != expected[name]:
            raise AdapterMismatchError(
                f"the MODEL's layer {name} has {row}, the adapter was made for {expected[name]}: {remedy}"
            )
    label = getattr(unet, "label_emb", None)
    pooled = None if label is None else label[0][0].in_features - _SIZE_EMBEDDING
    if pooled != config.pooled_width:
        raise AdapterMismatchError(
            f"the MODEL takes pooled text of width {pooled}, the adapter makes {config.pooled_width}: {remedy}"
        )
    return layers


class _Sampling:
    """Wrapper of ComfyUI's sampling that checks its inputs and outputs."""

    def __init__(self, digest: str, hooks: TextAttention, known: set[Any]) -> None:
        self.digest = digest
        self.hooks = hooks
        self.known = known

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the samples.

        Raises:
            AttachError: no conditioning is from LLMDiff Encode, one is of another adapter, or another extension has
                replaced the attention of a whole block.
            NonFinitePictureError: the samples are not finite.
        """
        guider = executor.class_obj
        replaced = guider.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        for key, function in replaced.items():
            if len(key) == 2 and key not in self.known:
                raise AttachError(
                    f"{getattr(function, '__module__', type(function).__module__)} has replaced the attention of the "
                    f"block {key} after Apply LLMDiff, and would have no effect: put Apply LLMDiff after that node"
                )
        conds = [cond for conds in guider.conds.values() for cond in conds]
        digests = {cond[ADAPTER_KEY] for cond in conds if ADAPTER_KEY in cond}
        if not digests:
            raise AttachError(
                "no conditioning is from LLMDiff Encode, so the LLM has no part in the picture: connect it to "
                "positive, or leave Apply LLMDiff out"
            )
        if digests != {self.digest}:
            raise AttachError(
                "a conditioning was encoded with another adapter than that of Apply LLMDiff: connect the same Load "
                "LLMDiff Adapter to both"
            )
        for cond in conds:
            if BASE_POOLED_KEY in cond:
                # The pooled vector has one place in the U-Net, so both texts share it: (1 - scale) * base + scale * c.
                base = cond[BASE_POOLED_KEY]
                cond["pooled_output"] = torch.lerp(base, cond["pooled_output"].to(base), self.hooks.scale)
        samples = executor(*args, **kwargs)
        if not bool(torch.isfinite(samples).all()):
            raise NonFinitePictureError(
                "the latents are not finite (NaN or infinity), which decodes to a black picture: a model overflowed in "
                "half precision; start ComfyUI with --force-fp32 or --bf16-unet, or lower the CFG scale"
            )
        return samples


def _compute_dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype


def _module(layer: Layer) -> str:
    side, block, _ = layer
    return "middle_block.1" if side == "middle" else f"{side}_blocks.{block}.1"
