"""The two branches of LLMDiff's cross-attention as patches of ComfyUI's transformer blocks.

ComfyUI calls three hooks in every cross-attention layer, and the two branches are spread over them:

    attn2_patch         gets the image states z before the projections: keeps z, hands phi(c) to the layer
    attn2_replace       gets q^(z), k^(phi(c)), v^(phi(c)): computes the attention, padding and base text included
    attn2_output_patch  gets the output after `to_out`: adds Attn(q(z), k(c), v(c)) and applies the gates

LoRAs, hypernetworks and quantised weights act on the layer's own projections, so they keep their effect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.adapter.layers import heads_of, merge_heads
from llmdiff.adapter.layout import TextLayout, TextParts, real_rows
from llmdiff.adapter.masks import seen_by
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.errors import AttachError, ConfigError

from .names import Layer

Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(q, k, v, extra_options) => the attention before the layer's output projection, all (B, N, heads * width)."""

_KEY = "llmdiff"


@dataclass
class Reading:
    """The text of one layer in one call, passed between the hooks in ComfyUI's `extra_options`.

    Fields:
        image_states: z, (B, N, C). parts: phi(c), c and the base's text.
        scale: the LLM's share; 0 outside the range of `start_percent` and `end_percent`.
        llm_mask, base_mask: masks of the tokens, None for all.
        attended: whether the layer's attention was computed by `TextAttention`.
    """

    image_states: Tensor
    parts: TextParts
    scale: float
    llm_mask: Tensor | None
    base_mask: Tensor | None
    attended: bool = False


class TextAttention:
    """The hooks of one MODEL.

        out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1*exp(b1)  +  gain * Attn(q(z), k(c), v(c)) * a2*exp(b2)

    and with `scale` below 1: (1 - scale) * base + scale * out.

    Args:
        branches: the new half of every cross-attention layer.
        attention: ComfyUI's own attention, for layers that need no mask.
        gains: the factor of the new half in the "input", "middle" and "output" blocks.
        start_sigma, end_sigma: the range of noise levels in which the LLM controls the picture.

    Source: Dong et al. 2024 (arXiv 2502.04412), the adapter's cross-attention; the same as
    `llmdiff.adapter.cross.TwoBranchAttention`.
    """

    def __init__(
        self,
        branches: Mapping[Layer, CrossAttentionBranch],
        *,
        text_width: int,
        hidden_size: int,
        attention: Attention,
        scale: float = 1.0,
        keep_base_text: bool = False,
        gains: Mapping[str, float] | None = None,
        start_sigma: float = float("inf"),
        end_sigma: float = 0.0,
    ) -> None:
        self.branches = branches
        self.text_width = text_width
        self.hidden_size = hidden_size
        self.attention = attention
        self.scale = scale
        self.keep_base_text = keep_base_text
        self.gains = gains or {}
        self.start_sigma = start_sigma
        self.end_sigma = end_sigma

    def __deepcopy__(self, memo: dict[int, Any]) -> "TextAttention":
        # ComfyUI deep-copies a MODEL's options when it clones the MODEL. The branches stay the ones whose memory it
        # manages, as the U-Net's own weights do.
        return self

    def before(
        self, image_states: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's inputs, with phi(c), the base's text or both as its text (`attn2_patch`).

        Raises:
            AttachError: another extension has changed the text, or the text is of another adapter.
            ConfigError: the base's text is needed, and the conditioning has none.
        """
        if context.shape[-1] == self.text_width:
            return image_states, context, value  # a conditioning of the model's own text encoder
        if value is not context:
            raise AttachError(
                "the text is changed by another extension before LLMDiff reads it: put Apply LLMDiff before that node"
            )
        try:
            parts = TextLayout(width=self.text_width, hidden_size=self.hidden_size).split(context)
        except ValueError as error:
            raise AttachError(
                f"{error}: use the same adapter in LLMDiff Encode and in Apply LLMDiff"
            ) from error
        assert parts is not None
        sigma = extra.get("sigmas")
        scale = self.scale
        if sigma is not None and not self.end_sigma <= float(sigma[0]) <= self.start_sigma:
            scale = 0.0
        needs_base = scale < 1 or self.keep_base_text
        if needs_base and parts.base is None:
            raise ConfigError(
                "the text of the model's own text encoder is needed (scale below 1, keep_base_text, start_percent "
                "above 0 or end_percent below 1), and the conditioning has none: connect CLIP Text Encode to the "
                "input base of LLMDiff Encode"
            )
        reading = Reading(
            image_states=image_states,
            parts=parts,
            scale=scale,
            llm_mask=seen_by(real_rows(parts.llm_states)),
            base_mask=None if parts.base_real is None else seen_by(parts.base_real),
        )
        extra[_KEY] = reading
        rows = parts.projected
        if needs_base:
            assert parts.base is not None
            rows = parts.base if scale == 0 else torch.cat([rows, parts.base], dim=1)
        return image_states, rows, rows

    def replacing(self, previous: Attention | None) -> Attention:
        """Return the layer's attention (`attn2_replace`); `previous` is another extension's, which it calls."""

        def attend(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
            own = previous or self.attention
            reading: Reading | None = extra.get(_KEY)
            if reading is None:
                return own(query, key, value, extra)
            reading.attended = True

            def seeing(tokens: slice, mask: Tensor | None) -> Tensor:
                if mask is None:
                    return own(query, key[:, tokens], value[:, tokens], extra)
                if previous is not None:
                    raise AttachError(
                        f"{_name(previous)} has replaced the attention of the layer {_layer(extra)}, and this text "
                        "needs a mask that it does not take: remove the base text from LLMDiff Encode, or the other "
                        "extension"
                    )
                return _masked(query, key[:, tokens], value[:, tokens], mask, extra)

            if reading.scale == 0:
                return seeing(slice(None), reading.base_mask)
            tokens = reading.parts.projected.shape[1]
            llm, base = slice(tokens), slice(tokens, None)
            if self.keep_base_text:
                llm, mask = slice(None), _joined(reading)
            else:
                mask = reading.llm_mask
            mixed = seeing(llm, mask)
            if reading.scale == 1:
                return mixed
            # `after` multiplies by the weight; the bias of to_out is then counted with the same factors.
            pretrained_gate, weight = self._gates(extra, reading.scale)
            alone = seeing(base, reading.base_mask)
            return (reading.scale * pretrained_gate * mixed + (1 - reading.scale) * alone) / weight

        return attend

    def after(self, output: Tensor, extra: dict[str, Any]) -> Tensor:
        """Return the layer's output with both branches (`attn2_output_patch`).

        Raises:
            AttachError: another extension has replaced the layer's attention, and the text needs ours.
        """
        reading: Reading | None = extra.pop(_KEY, None)
        if reading is None:
            return output
        needs_ours = reading.parts.base is not None or reading.llm_mask is not None
        if needs_ours and not reading.attended:
            raise AttachError(
                f"another extension has replaced the attention of the layer {_layer(extra)} after Apply LLMDiff, and "
                "this text needs LLMDiff's: put Apply LLMDiff after that node, or remove the base text"
            )
        if reading.scale == 0:
            return output
        branch = self.branches[_layer(extra)]
        _, new_gate = branch.gates()
        _, weight = self._gates(extra, reading.scale)
        text = branch.read(reading.parts.llm_states, reading.llm_mask)
        new = branch.attend(reading.image_states, text)
        gain = reading.scale * self.gains.get(_layer(extra)[0], 1.0)
        return torch.addcmul(output * weight, new, new_gate * gain)

    def _gates(self, extra: Any, scale: float) -> tuple[Tensor, Tensor]:
        """Return a1*exp(b1), and what the layer's own output is multiplied by: 1 - scale + scale * a1*exp(b1)."""
        pretrained_gate, _ = self.branches[_layer(extra)].gates()
        return pretrained_gate, 1 - scale + scale * pretrained_gate


def _layer(extra: Mapping[str, Any]) -> Layer:
    side, block = extra["block"]
    return side, block, extra["block_index"]


def _joined(reading: Reading) -> Tensor | None:
    if reading.llm_mask is None and reading.base_mask is None:
        return None
    parts = reading.parts
    assert parts.base_real is not None
    shape = real_rows(parts.llm_states)
    masks = (reading.llm_mask, reading.base_mask)
    return torch.cat(
        [torch.ones_like(shape)[:, None, None] if mask is None else mask for mask in masks], dim=-1
    )


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, extra: Any) -> Tensor:
    heads, dtype = extra["n_heads"], query.dtype
    precision = extra.get("attn_precision") or dtype
    mixed = F.scaled_dot_product_attention(
        heads_of(query.to(precision), heads),
        heads_of(key.to(precision), heads),
        heads_of(value.to(precision), heads),
        attn_mask=mask,
    )
    return merge_heads(mixed).to(dtype)


def _name(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"
