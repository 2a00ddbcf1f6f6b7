"""Inspect the attention layers of a denoiser."""

from fnmatch import fnmatch
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.adapter.families import Family, family_named, family_of_denoiser, text_width
from llmdiff.errors import AdapterMismatchError

_IMAGE_PROMPTS = ("image_proj", "encoder_hid_proj")
"""Modules that an IP-Adapter adds to a denoiser; their attention reads pictures."""


def attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return every attention layer, by its module name and in module order, without those of an IP-Adapter."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if hasattr(module, "set_processor") and name.partition(".")[0] not in _IMAGE_PROMPTS
    }


def text_layers(denoiser: nn.Module) -> dict[str, Any]:
    """Return every attention layer that reads the text, by its name.

    These are cross-attention layers, joint attention layers with projections of the text stream, and those that the
    family names.
    """
    family = family_of_denoiser(denoiser)
    return {
        name: module
        for name, module in attention_layers(denoiser).items()
        if getattr(module, "is_cross_attention", False)
        or getattr(module, "added_kv_proj_dim", None) is not None
        or (family is not None and is_named(name, family.branches))
    }


def joint_layers(module: nn.Module, family: Family) -> dict[str, nn.Module]:
    """Return the attention layers of a denoiser or ControlNet that read text and image together, by their names.

    Where an argument of the denoiser carries c to its layers, the image's own layers (Stable Diffusion 3.5's second
    attention) get it too. They are included, as diffusers would warn of it in every step.
    """
    text = text_layers(module)
    return {
        name: layer
        for name, layer in attention_layers(module).items()
        if name in text or is_named(name, family.single_stream) or family.carrier is not None
    }


def is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a module's name matches one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def layer_table(denoiser: nn.Module) -> dict[str, dict[str, int | bool]]:
    """Return the arguments of the second branch of every layer that reads the text, as JSON stores them.

    Shapes:
        query_dim: width of the image states; inner_dim: heads times head width; out_dim: width of the output.
    """
    layers: dict[str, Any] = text_layers(denoiser)
    return {
        name: {
            "query_dim": attn.to_q.in_features,
            "inner_dim": attn.to_q.out_features,
            "heads": attn.heads,
            "out_dim": attn.to_out[0].out_features,
            "query_bias": attn.to_q.bias is not None,
            "out_bias": attn.to_out[0].bias is not None,
        }
        for name, attn in layers.items()
    }


def check_layers(denoiser: nn.Module, config: Any) -> None:
    """Raise an AdapterMismatchError unless an adapter of this config was made for a denoiser like this one."""
    width = text_width(denoiser, family_named(config.family))
    remedy = f"use a pipeline like the adapter's own base, {config.base_model_id!r}"
    if width != config.text_width:
        raise AdapterMismatchError(
            f"pipe takes text states of width {width}, the adapter makes {config.text_width}: {remedy}"
        )
    found, expected = layer_table(denoiser), config.cross_attention
    if len(found) != len(expected):
        raise AdapterMismatchError(
            f"pipe has {len(found)} attention layers that read the text, the adapter was made for "
            f"{len(expected)}: {remedy}"
        )
    for name in found:
        if found[name] != expected.get(name):
            raise AdapterMismatchError(
                f"pipe's attention layer {name} has {found[name]}, the adapter was made for "
                f"{expected.get(name, 'no such layer')}: {remedy}"
            )


def states_at_layers(denoiser: Any, family: Family, states: Tensor) -> Tensor:
    """Return text states as the attention layers read them, (B, T, W) => (B, T, inner width)."""
    for name in family.text_projections:
        states = denoiser.get_submodule(name)(states)
    if family.text_channel == "joint":
        # Every joint block normalises its text stream before the attention reads it.
        states = F.layer_norm(states, states.shape[-1:])
    return states


def text_keys_values(attn: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pretrained keys and values of text states, (B, T, width) => (B, heads, T, head width)."""
    joint = getattr(attn, "added_kv_proj_dim", None) is not None
    to_key, to_value, norm = (
        (attn.add_k_proj, attn.add_v_proj, getattr(attn, "norm_added_k", None))
        if joint
        else (attn.to_k, attn.to_v, attn.norm_k)
    )
    key, value = to_key(states), to_value(states)
    # With grouped queries, keys have fewer heads.
    heads = key.shape[-1] * attn.heads // attn.to_q.out_features
    return heads_of(key, heads, norm), heads_of(value, heads)


def heads_of(states: Tensor, heads: int, norm: Any = None) -> Tensor:
    """Split states into heads and normalise them: (B, T, heads * width) => (B, heads, T, width)."""
    # Some families normalise all heads at once (Sana), others every head alone (Stable Diffusion 3, Flux).
    whole = norm is not None and _norm_width(norm) == states.shape[-1]
    if whole:
        states = norm(states)
    split = states.view(*states.shape[:-1], heads, -1).transpose(1, 2)
    return split if norm is None or whole else norm(split)


def merge_heads(states: Tensor) -> Tensor:
    """Merge attention heads, (B, heads, N, width) => (B, N, heads * width)."""
    return states.transpose(1, 2).flatten(2)


def _norm_width(norm: Any) -> int:
    shape = norm.normalized_shape if hasattr(norm, "normalized_shape") else norm.dim
    return int(shape[-1])
