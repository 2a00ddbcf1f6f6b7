"""A diffusers U-Net whose cross-attention layers call ComfyUI's three hooks, in ComfyUI's order.

`test_real_comfyui.py` holds the same hooks against ComfyUI itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comfyui.attention import TextAttention
from comfyui.names import Layer
from llmdiff.adapter import LLMDiffAdapter, layers
from llmdiff.adapter.layers import heads_of, merge_heads


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
    heads = extra["n_heads"]
    mixed = F.scaled_dot_product_attention(
        heads_of(query, heads), heads_of(key, heads), heads_of(value, heads)
    )
    return merge_heads(mixed)


def places(unet: Any) -> dict[str, Layer]:
    """Any place per layer: the hooks only need it to be unique."""
    return {
        name: ({"d": "input", "m": "middle", "u": "output"}[name[0]], index, 0)
        for index, name in enumerate(layers.text_layers(unet))
    }


def text_attention(unet: Any, adapter: LLMDiffAdapter, **settings: Any) -> TextAttention:
    config: Any = adapter.config
    return TextAttention(
        {place: adapter.branch(name) for name, place in places(unet).items()},
        text_width=config.text_width,
        hidden_size=config.hidden_size,
        attention=plain_attention,
        **settings,
    )


def call_hooks(unet: Any, hooks: TextAttention, *, sigma: float = 1.0) -> None:
    for name, (side, block, index) in places(unet).items():
        attn: Any = unet.get_submodule(name)

        def forward(
            hidden_states: Tensor,
            encoder_hidden_states: Tensor,
            *_: Any,
            attn: Any = attn,
            place: Layer = (side, block, index),
            **__: Any,
        ) -> Tensor:
            extra = {
                "block": place[:2],
                "block_index": place[2],
                "n_heads": attn.heads,
                "attn_precision": None,
                "sigmas": torch.tensor([sigma]),
            }
            image, context, value = hooks.before(
                hidden_states, encoder_hidden_states, encoder_hidden_states, extra
            )
            attend = hooks.replacing(None)
            out = attend(attn.to_q(image), attn.to_k(context), attn.to_v(value), extra)
            return hooks.after(attn.to_out[0](out), extra)

        attn.forward = forward
