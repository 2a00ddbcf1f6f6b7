"""The two-branch cross-attention that replaces the `forward` of an attached layer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_sana_video import (
    SanaAttnProcessor2_0 as SanaVideoAttnProcessor,
)
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from llmdiff.adapter.layers import heads_of, text_keys_values
from llmdiff.adapter.layout import (
    NO_TEXT,
    PACKED_MASK_NDIM,
    TextLayout,
    TextParts,
    of_group,
    parts_beside,
    real_rows,
)
from llmdiff.adapter.masks import as_bias, seen_by
from llmdiff.adapter.processors import AttachedLayer, CrossAttentionBranch, KeysValues, attention
from llmdiff.adapter.split import SplitText
from llmdiff.errors import AttachError, UnsupportedPipelineError

# Plain softmax attention: computed here, so that its keys and values can be cached for the whole generation.
_COMPUTED_HERE = (
    AttnProcessor,
    AttnProcessor2_0,
    SanaAttnProcessor2_0,
    SanaVideoAttnProcessor,
    WanAttnProcessor,
    LTXVideoAttnProcessor,
)
# The same attention with another memory layout or fused weights: the pretrained branch calls the processor.
_DELEGATED = (SlicedAttnProcessor, XFormersAttnProcessor, FusedAttnProcessor2_0)
# Plain attention to the text, computed here, plus attention to image tokens, computed by the processor.
_WITH_PICTURES = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)


@dataclass(frozen=True)
class LayerTexts:
    """Keys and values of the texts that a layer reads: phi(c), c if there is a branch, the base's if needed.

    gates: a1*exp(b1) and a2*exp(b2) of the branch. They are kept with the keys, as they are the same in every step.
    """

    projected: KeysValues
    llm_states: KeysValues | None
    base: KeysValues | None
    gates: tuple[Tensor, Tensor] | None = None


class TwoBranchAttention(AttachedLayer):
    """Cross-attention with the pretrained branch on phi(c) and the new branch on c.

        out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1*exp(b1)  +  Attn(q(z), k(c), v(c)) * a2*exp(b2)

    Hats mark the layer's frozen projections, its output projection included. `scale` below 1 gives
    (1 - scale) * base + scale * out, where base is the layer's attention over the base's text states. With
    `keep_base_text` the pretrained branch attends to the base's text states as further keys and values beside
    phi(c). Without a branch (a ControlNet) the layer reads phi(c) only. An IP-Adapter's image attention is
    unchanged. With a `hook` the denoiser projects the text states, see `SplitText`. With routing the layer is in one
    of several groups and reads that group's c, and its phi(c) where no `hook` projects one for all layers.

    Raises:
        UnsupportedPipelineError: the layer has a processor of an unknown kind.

    Source: Dong et al. 2024 (arXiv 2502.04412), the adapter's cross-attention; scale, keep_base_text and the
    ControlNet are ours.
    """

    def __init__(
        self,
        attn: Any,
        branch: CrossAttentionBranch | None,
        *,
        layout: TextLayout,
        group: int = 0,
        hook: SplitText | None = None,
        scale: float = 1.0,
        keep_base_text: bool = False,
    ) -> None:
        super().__init__(attn, branch, scale=scale)
        self.layout = layout
        self.group = group
        self.hook = hook
        self.keep_base_text = keep_base_text
        # Called with the layer, its image states (B, N, C) and its texts, before each attention.
        self.watch: Callable[[TwoBranchAttention, Tensor, LayerTexts], None] | None = None
        self.check()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "watch": None}

    def check(self) -> None:
        """Raise an UnsupportedPipelineError unless the layer's current processor is supported."""
        attn, kind = self.attn, type(self.attn.processor)
        if kind not in _COMPUTED_HERE + _DELEGATED + _WITH_PICTURES:
            known = ", ".join(row.__name__ for row in _COMPUTED_HERE + _DELEGATED + _WITH_PICTURES)
            raise UnsupportedPipelineError(
                f"a cross-attention layer has the processor {kind.__name__}, expected one of {known}: unload "
                "what installed it (an old LoRA, another extension), then try again"
            )
        if kind not in _COMPUTED_HERE and _is_framed(attn):
            raise UnsupportedPipelineError(
                f"a cross-attention layer normalises or adds its input itself and has the processor "
                f"{kind.__name__}: set AttnProcessor2_0 before attaching"
            )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        *more: Any,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output, (B, N, out_dim), or (B, C, H, W) for an input of that shape."""
        text, pictures = encoder_hidden_states, None
        if isinstance(text, tuple):
            text, pictures = text
        parts = self._parts(text, attention_mask)
        if parts is None:
            if self.hook is None and text is not None:
                text = self.layout.base(text)
            self.note_reading()
            given = text if pictures is None else (text, pictures)
            if temb is not None:
                kwargs["temb"] = temb
            result: Tensor = self.original(hidden_states, given, attention_mask, *more, **kwargs)
            return result

        self.note_reading()
        source, mask = (text, attention_mask) if self.hook is None else (self.hook.source, None)
        texts = self._texts(source, parts, mask)

        def attend(states: Tensor) -> Tensor:
            out = self._two_branches(states, texts)
            return out if pictures is None else out + self._pictures(states, pictures, kwargs)

        return _framed(self.attn, hidden_states, temb, attend)

    def _parts(self, text: Any, attention_mask: Tensor | None) -> TextParts | None:
        """Return the layer's phi(c) and c, and the base's text beside them; None if the base's text comes alone."""
        group, groups = self.group, self.layout.groups
        if self.hook is not None:
            # The denoiser has projected the text states, and c arrives in the mask or beside it, see `SplitText`.
            carried = attention_mask if self.hook.carrier else self._handed(self.hook, text)
            if not isinstance(carried, Tensor) or carried.ndim != PACKED_MASK_NDIM:
                return None
            parts = parts_beside(text, carried)
            return replace(parts, llm_states=of_group(parts.llm_states, group, groups))
        if text is None and self.layout.strict:
            raise AttachError(NO_TEXT)
        found = None if text is None else self.layout.split(text)
        return found and replace(
            found,
            projected=of_group(found.projected, group, groups),
            llm_states=of_group(found.llm_states, group, groups),
        )

    def _two_branches(self, hidden_states: Tensor, texts: LayerTexts) -> Tensor:
        attn = self.attn
        if self.watch is not None:
            self.watch(self, hidden_states, texts)
        query = None if self.delegates else heads_of(attn.to_q(hidden_states), attn.heads, attn.norm_q)
        # out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1*exp(b1)  +  Attn(q(z), k(c), v(c)) * a2*exp(b2)
        out = self._pretrained(hidden_states, query, texts.projected)
        if self.branch is not None and texts.llm_states is not None and texts.gates is not None:
            pretrained_gate, new_gate = texts.gates
            new = self.branch.attend(hidden_states, texts.llm_states, norm=attn.norm_q, backend=self.backend)
            out = torch.addcmul(out * pretrained_gate, new, new_gate)
        if self.scale < 1 and texts.base is not None:
            # (1 - scale) * base + scale * out
            out = torch.lerp(self._pretrained(hidden_states, query, texts.base), out, self.scale)
        return out

    def _pretrained(self, hidden_states: Tensor, query: Tensor | None, text: KeysValues) -> Tensor:
        attn = self.attn
        if query is None:
            bias = None if text.mask is None else as_bias(text.mask, hidden_states.dtype).squeeze(1)
            delegated: Tensor = attn.processor(attn, hidden_states, text.key, bias)
            return delegated
        mixed = attention(query, text, scale=getattr(attn, "scale", None), backend=self.backend)
        result: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return result

    def _pictures(self, hidden_states: Tensor, pictures: Any, kwargs: dict[str, Any]) -> Tensor:
        """Return the output of the IP-Adapter's image attention, without that of the text."""
        attn = self.attn
        # The processor always attends to text too. With a single all-zero text token, the text's part is the
        # same at every position and can be subtracted.
        nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, attn.to_k.in_features)
        wanted = inspect.signature(attn.processor.__call__).parameters
        more = {name: value for name, value in kwargs.items() if name in wanted}
        both: Tensor = attn.processor(attn, hidden_states, (nothing, pictures), **more)
        normed = attn.norm_encoder_hidden_states(nothing) if attn.norm_cross else nothing
        text_half: Tensor = attn.to_out[1](attn.to_out[0](attn.to_v(normed)))
        return both - text_half

    @property
    def delegates(self) -> bool:
        """Return whether the layer's own processor computes the pretrained branch; keys are then the states."""
        return type(self.attn.processor) in _DELEGATED

    def _handed(self, hook: SplitText, text: Tensor) -> Any:
        """Return what the denoiser's hook hands to the layers, repeated like the text for the frames of a video."""
        if hook.handed is None:
            raise AttachError("an attached layer is called outside its denoiser: detach to use it alone")
        if isinstance(hook.handed, Tensor) and len(text) != len(hook.handed):
            return hook.handed.repeat_interleave(len(text) // len(hook.handed), dim=0)
        return hook.handed

    def _texts(self, source: Tensor | None, parts: TextParts, attention_mask: Tensor | None) -> LayerTexts:
        """Return keys, values and masks of all texts, cached between calls where that is safe."""
        attn = self.attn
        # No cache for a LoRA on the key projection, whose strength can change between steps.
        if attention_mask is not None or hasattr(attn.to_k, "base_layer"):
            return self._read(parts, attention_mask)
        weights = (attn.to_k.weight, attn.to_v.weight, *(() if self.hook is None else self.hook.weights))
        return self.kept(source, weights, lambda: self._read(parts, None))

    def _read(self, parts: TextParts, attention_mask: Tensor | None) -> LayerTexts:
        mask = seen_by(real_rows(parts.llm_states), attention_mask)
        llm_states = None if self.branch is None else self.biased(self.branch.read(parts.llm_states, mask))
        gates = None if self.branch is None else self.branch.gates()
        projected, base = parts.projected, None
        if parts.base is not None and parts.base_real is not None:
            base_mask = seen_by(parts.base_real, attention_mask)
            base = self._pretrained_text(parts.base, base_mask)
            if self.keep_base_text:
                projected = torch.cat([projected, parts.base], dim=1)
                if mask is not None or base_mask is not None:
                    sides = [(mask, parts.llm_states), (base_mask, parts.base)]
                    mask = torch.cat([_explicit(side, like) for side, like in sides], dim=-1)
        return LayerTexts(self._pretrained_text(projected, mask), llm_states, base, gates)

    def _pretrained_text(self, states: Tensor, mask: Tensor | None) -> KeysValues:
        attn, states = self.attn, states.contiguous()
        if self.delegates:
            return KeysValues(states, states, mask)
        if getattr(attn, "norm_cross", None):
            states = attn.norm_encoder_hidden_states(states)
        return self.biased(KeysValues(*text_keys_values(attn, states), mask))


def _explicit(mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is not None:
        return mask
    return torch.ones(like.shape[0], 1, 1, like.shape[1], dtype=torch.bool, device=like.device)


def _framed(
    attn: Any, hidden_states: Tensor, temb: Tensor | None, attend: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return an attention's output with the steps that AttnProcessor2_0 has before and after it."""
    residual, framed = hidden_states, _is_framed(attn)
    if framed and attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    image_shape = hidden_states.shape
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    if framed and attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    out = attend(hidden_states)
    if len(image_shape) == 4:
        out = out.transpose(-1, -2).reshape(image_shape)
    if framed and attn.residual_connection:
        out = out + residual
    if framed and attn.rescale_output_factor != 1:
        out = out / attn.rescale_output_factor
    return out


def _is_framed(attn: Any) -> bool:
    """Return whether a layer normalises, adds or rescales around its attention, as diffusers' `Attention` can."""
    return (
        getattr(attn, "residual_connection", False)
        or getattr(attn, "group_norm", None) is not None
        or getattr(attn, "spatial_norm", None) is not None
        or getattr(attn, "rescale_output_factor", 1) != 1
    )
