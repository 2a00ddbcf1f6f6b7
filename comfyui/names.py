"""Names of a U-Net's parts in ComfyUI and in diffusers.

ComfyUI counts blocks (`input_blocks.4.1`), diffusers counts levels (`down_blocks.1.attentions.0`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llmdiff.errors import UnsupportedPipelineError

Value = TypeVar("Value")
Layer = tuple[str, int, int]
"""A cross-attention layer as ComfyUI's patches name it: ("input" | "middle" | "output", block, transformer block)."""

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_PARTS = ("in_layers", "out_layers", "emb_layers", "skip_connection")
_COMFY = re.compile(
    r"(?P<side>input|output)_blocks\.(?P<block>\d+)\.(?P<index>\d+)\.(?P<part>[a-z_]+\d?)(\.|$)"
)
_SIDES = {"input": "down", "output": "up"}
_KINDS = {"op": "downsamplers", "conv": "upsamplers", **dict.fromkeys(_RESNET_PARTS, "resnets")}
_ATTENTION = re.compile(r"\.transformer_blocks\.(\d+)\.attn2$")


def block_names(comfy_names: Iterable[str]) -> dict[str, str]:
    """Return the diffusers name of every block of a U-Net: {"input_blocks.4.1": "down_blocks.1.attentions.0"}.

    `comfy_names` are the names of the weights of ComfyUI's U-Net.
    """
    kinds: dict[tuple[str, int, int], str] = {}
    for name in comfy_names:
        found = _COMFY.match(name)
        if found is not None and not name.startswith("input_blocks.0."):
            place = (found["side"], int(found["block"]), int(found["index"]))
            kinds[place] = _KINDS.get(found["part"], "attentions")
    names = dict(_TOP)
    for side, diffusers_side in _SIDES.items():
        level, counts = 0, {"resnets": 0, "attentions": 0}
        for place in sorted(place for place in kinds if place[0] == side):
            kind = kinds[place]
            new = f"{diffusers_side}_blocks.{level}.{kind}"
            names[f"{side}_blocks.{place[1]}.{place[2]}"] = f"{new}.{counts.get(kind, 0)}"
            if kind in counts:
                counts[kind] += 1
            else:
                # A level ends with its change of resolution.
                level, counts = level + 1, {"resnets": 0, "attentions": 0}
    return names


def comfy_state_dict(comfy_names: Iterable[str], diffusers_weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return a diffusers U-Net's weights under the names of ComfyUI's U-Net.

    Raises:
        UnsupportedPipelineError: the two U-Nets do not have the same weights.
    """
    comfy_names = list(comfy_names)
    names = block_names(comfy_names)
    renamed = {name: _diffusers_name(name, names) for name in comfy_names}
    different = sorted(set(renamed.values()) ^ set(diffusers_weights))
    if different:
        raise UnsupportedPipelineError(
            f"the U-Net's weight {different[0]!r} has no counterpart in ComfyUI's U-Net ({len(different)} differ): use "
            "a base of the Stable Diffusion 1.x, 2.x or XL layout"
        )
    return {name: diffusers_weights[old] for name, old in renamed.items()}


def attention_layers(comfy_names: Iterable[str]) -> dict[str, Layer]:
    """Return every cross-attention layer of ComfyUI's U-Net by its diffusers name, as adapters store it."""
    comfy_names = list(comfy_names)
    names = block_names(comfy_names)
    modules = {
        name.rpartition(".attn2.to_q.")[0] + ".attn2" for name in comfy_names if ".attn2.to_q." in name
    }
    layers: dict[str, Layer] = {}
    for module in modules:
        side = module.split("_", 1)[0]
        block = 0 if side == "middle" else int(module.split(".")[1])
        inner = _ATTENTION.search(module)
        assert inner is not None
        layers[_diffusers_name(module, names)] = (side, block, int(inner[1]))
    return layers


def comfy_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ComfyUI's U-Net for the config of a diffusers U-Net.

    Raises:
        UnsupportedPipelineError: ComfyUI's U-Net has no such form.
    """
    channels = list(config["block_out_channels"])
    levels = len(channels)
    layers = _each(config["layers_per_block"], levels)
    depths = _each(config["transformer_layers_per_block"], levels)
    # In a U-Net's config, attention_head_dim is the number of heads unless num_attention_heads says it.
    heads = _each(config.get("num_attention_heads") or config["attention_head_dim"], levels)
    down = [
        depth if "CrossAttn" in kind else 0
        for depth, kind in zip(depths, config["down_block_types"], strict=True)
    ]
    up = [
        depth if "CrossAttn" in kind else 0
        for depth, kind in zip(depths, reversed(config["up_block_types"]), strict=True)
    ]
    widths = {channel // count for channel, count in zip(channels, heads, strict=True)}
    if any(channel % channels[0] for channel in channels):
        raise UnsupportedPipelineError(f"block_out_channels is {channels}, expected multiples of the first")
    if len(widths) > 1 and len(set(heads)) > 1:
        raise UnsupportedPipelineError(
            f"the U-Net has {heads} heads for {channels} channels: ComfyUI's U-Net has one number or one width for all"
        )
    same_heads = len(set(heads)) == 1
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "channel_mult": [channel // channels[0] for channel in channels],
        "num_res_blocks": layers,
        "transformer_depth": [depth for depth, count in zip(down, layers, strict=True) for _ in range(count)],
        "transformer_depth_output": [
            depth for depth, count in zip(up, layers, strict=True) for _ in range(count + 1)
        ],
        "transformer_depth_middle": depths[-1],
        "context_dim": _each(config["cross_attention_dim"], 1)[0],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": bool(config["use_linear_projection"]),
        "num_heads": heads[0] if same_heads else -1,
        "num_head_channels": -1 if same_heads else widths.pop(),
        "legacy": False,
        "adm_in_channels": config.get("projection_class_embeddings_input_dim"),
        "num_classes": "sequential" if config.get("addition_embed_type") == "text_time" else None,
    }


def _diffusers_name(name: str, names: Mapping[str, str]) -> str:
    parts = name.split(".")
    for length in (3, 2):
        block, rest = ".".join(parts[:length]), parts[length:]
        if block not in names:
            continue
        new, inside = names[block], ".".join(rest)
        if ".resnets." in new:
            for old, part in _IN_RESNET.items():
                if inside.startswith(f"{old}."):
                    inside = part + inside.removeprefix(old)
                    break
        elif new.endswith("samplers.0"):
            inside = inside.replace("op.", "conv.", 1)
        return f"{new}.{inside}" if inside else new
    return name


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count
