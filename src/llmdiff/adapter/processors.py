"""The attention processor that adds the LLM's branch beside the pretrained cross-attention.

Everything a processor needs about the prompt arrives in one tensor, `encoder_hidden_states`. Its width says
what it is (W = the denoiser's text width, D = the LLM's):

    W          the base's own text states      => the layer does what it did before
    W + D      [phi(c) ; c]                    => the two branches
    W + D + W  [phi(c) ; c ; base text states] => the two branches, mixed with the base by `scale`

c is the normalised text encoding here. A row whose c part is all zeros is padding, so two prompts are brought
to one length by appending zero rows, and no mask travels beside the tensor.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from llmdiff.errors import UnsupportedPipelineError

# Plain softmax attention: computed here, so that its keys and values can be kept for the whole generation.
_COMPUTED_HERE = (AttnProcessor, AttnProcessor2_0)
# The same attention with another memory layout or fused weights: the pretrained branch calls them.
_DELEGATED = (SlicedAttnProcessor, XFormersAttnProcessor, FusedAttnProcessor2_0)


class CrossAttentionBranch(nn.Module):
    """The new, trainable half of one cross-attention layer, with the gates of both halves.

    Shapes:
        image states (B, N, query_dim) => (B, N, out_dim); text states (B, T, D).

    Source: Dong et al. 2024 (arXiv 2502.04412), the adapter's cross-attention with gates a*exp(b).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        query_dim: int,
        inner_dim: int,
        heads: int,
        out_dim: int,
        query_bias: bool,
        out_bias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=query_bias)
        # No bias: a zero row (padding) then has zero key and value, whatever the weights.
        self.to_k = nn.Linear(hidden_size, inner_dim, bias=False)
        self.to_v = nn.Linear(hidden_size, inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, out_dim, bias=out_bias)
        self.a1 = nn.Parameter(torch.ones(()))
        self.b1 = nn.Parameter(torch.zeros(()))
        self.a2 = nn.Parameter(torch.ones(()))
        self.b2 = nn.Parameter(torch.zeros(()))

    def gates(self) -> tuple[Tensor, Tensor]:
        """Return (a1*exp(b1), a2*exp(b2)): the weights of the pretrained and of the new half."""
        return self.a1 * self.b1.exp(), self.a2 * self.b2.exp()


@dataclass(frozen=True)
class _Text:
    """Text states as one attention reads them: keys and values (B, heads, T, head width), mask (B, 1, 1, T).

    Where another processor computes the attention, keys and values are the states themselves.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Texts:
    aligned: _Text
    own: _Text
    base: _Text | None


class TwoBranchAttnProcessor:
    """Cross-attention with the pretrained branch on phi(c) and the new branch on c.

        out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1*exp(b1)  +  Attn(q(z), k(c), v(c)) * a2*exp(b2)

    Hats are the layer's own frozen projections, its output projection included. `scale` below 1 gives
    (1 - scale) * base + scale * out, base being the layer's attention over the base's own text states.

    It is no `nn.Module` on purpose: diffusers would make the branch part of the denoiser, and a pipeline
    saved while attached would then no longer be the base pipeline.

    Raises:
        UnsupportedPipelineError: the layer's present processor is neither plain attention (AttnProcessor,
            AttnProcessor2_0) nor one that the pretrained branch can call (SlicedAttnProcessor,
            XFormersAttnProcessor, FusedAttnProcessor2_0).

    Source: Dong et al. 2024 (arXiv 2502.04412), the adapter's cross-attention.
    """

    def __init__(
        self, branch: CrossAttentionBranch, original: Any, attn: Any, *, text_width: int, scale: float = 1.0
    ) -> None:
        self.branch = branch
        self.original = original
        self.text_width = text_width
        self.scale = scale
        self.delegates = type(original) in _DELEGATED
        if not self.delegates and type(original) not in _COMPUTED_HERE:
            known = ", ".join(kind.__name__ for kind in _COMPUTED_HERE + _DELEGATED)
            raise UnsupportedPipelineError(
                f"a cross-attention layer has the processor {type(original).__name__}, expected one of "
                f"{known}: unload what installed it (IP-Adapter, an old LoRA), attach, then try again"
            )
        framed = attn.residual_connection or attn.group_norm is not None or attn.spatial_norm is not None
        if self.delegates and (framed or attn.rescale_output_factor != 1):
            raise UnsupportedPipelineError(
                f"a cross-attention layer normalises or adds its input itself and has the processor "
                f"{type(original).__name__}: set AttnProcessor2_0 before attaching"
            )
        self._kept: Any = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        # Copies start with nothing kept: the copied layer has other weights and meets other tensors.
        return {**self.__dict__, "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = WeakTensorKeyDictionary()

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the branch to the denoiser's device and dtype; returns nothing.

        A branch that lies elsewhere is copied, not moved: other pipelines may share the adapter.
        """
        weight = self.branch.to_q.weight
        # "cuda" means the current GPU, which weights report with its number.
        elsewhere = weight.device.type != device.type or device.index not in (None, weight.device.index)
        if elsewhere or weight.dtype != dtype:
            self.branch = copy.deepcopy(self.branch).to(device=device, dtype=dtype)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output, (B, N, out_dim), or (B, C, H, W) where that came in."""
        if encoder_hidden_states is None or encoder_hidden_states.shape[-1] == self.text_width:
            extra = () if self.delegates else (temb,)
            result: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, *extra)
            return result

        # The frame around the attention is AttnProcessor2_0's, step by step.
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        texts = self._texts(attn, encoder_hidden_states, attention_mask)
        query = None if self.delegates else _pretrained_query(attn, hidden_states)
        pretrained_gate, own_gate = self.branch.gates()
        # out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1*exp(b1)  +  Attn(q(z), k(c), v(c)) * a2*exp(b2)
        out = self._pretrained(attn, hidden_states, query, texts.aligned) * pretrained_gate
        out = torch.addcmul(out, self._own(hidden_states, texts.own), own_gate)
        if texts.base is not None:
            # (1 - scale) * base + scale * out
            out = torch.lerp(self._pretrained(attn, hidden_states, query, texts.base), out, self.scale)

        if len(image_shape) == 4:
            out = out.transpose(-1, -2).reshape(image_shape)
        if attn.residual_connection:
            out = out + residual
        if attn.rescale_output_factor != 1:
            out = out / attn.rescale_output_factor
        return out

    def _pretrained(self, attn: Any, hidden_states: Tensor, query: Tensor | None, text: _Text) -> Tensor:
        if query is None:
            bias = None if text.mask is None else _as_bias(text.mask, hidden_states.dtype).squeeze(1)
            delegated: Tensor = self.original(attn, hidden_states, text.key, bias)
            return delegated
        mixed = F.scaled_dot_product_attention(
            query, text.key, text.value, attn_mask=text.mask, scale=attn.scale
        )
        result: Tensor = attn.to_out[1](attn.to_out[0](_join_heads(mixed)))
        return result

    def _own(self, hidden_states: Tensor, text: _Text) -> Tensor:
        query = _split_heads(self.branch.to_q(hidden_states), self.branch.heads)
        mixed = F.scaled_dot_product_attention(query, text.key, text.value, attn_mask=text.mask)
        result: Tensor = self.branch.to_out(_join_heads(mixed))
        return result

    def _texts(self, attn: Any, states: Tensor, attention_mask: Tensor | None) -> _Texts:
        """Return keys, values and masks of all texts, kept from the last call where that is safe."""
        # A LoRA on the key projection can change its strength between two steps; a tensor made in inference
        # mode does not count its changes. Both are computed afresh, like everything that needs a gradient.
        certain = not (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or states.is_inference()
            or attention_mask is not None
            or hasattr(attn.to_k, "base_layer")
        )
        if not certain:
            return self._read(attn, states, attention_mask)
        weights = (self.branch.to_k, self.branch.to_v, attn.to_k, attn.to_v)
        stamp = (states._version, *((id(layer), _version(layer.weight)) for layer in weights))
        kept = self._kept.get(states)
        if kept is None or kept[0] != stamp:
            kept = (stamp, self._read(attn, states, None))
            self._kept[states] = kept
        texts: _Texts = kept[1]
        return texts

    def _read(self, attn: Any, states: Tensor, attention_mask: Tensor | None) -> _Texts:
        width, hidden_size = self.text_width, self.branch.to_k.in_features
        if states.shape[-1] not in (width + hidden_size, 2 * width + hidden_size):
            raise ValueError(
                f"encoder_hidden_states has width {states.shape[-1]}, expected {width} (the base's states)"
                f", {width + hidden_size} or {2 * width + hidden_size} (from the attached encode_prompt)"
            )
        own = states[..., width : width + hidden_size]
        mask = _token_mask(own, attention_mask)
        key, value = (_split_heads(to(own), self.branch.heads) for to in (self.branch.to_k, self.branch.to_v))
        aligned = self._pretrained_text(attn, states[..., :width], mask)
        base = None
        if states.shape[-1] > width + hidden_size:
            base_states = states[..., width + hidden_size :]
            base = self._pretrained_text(attn, base_states, _token_mask(base_states, attention_mask))
        return _Texts(aligned, _Text(key, value, mask), base)

    def _pretrained_text(self, attn: Any, states: Tensor, mask: Tensor | None) -> _Text:
        states = states.contiguous()
        if self.delegates:
            return _Text(states, states, mask)
        normed = attn.norm_encoder_hidden_states(states) if attn.norm_cross else states
        key, value = (
            _split_heads(attn.to_k(normed), attn.heads),
            _split_heads(attn.to_v(normed), attn.heads),
        )
        return _Text(key if attn.norm_k is None else attn.norm_k(key), value, mask)


def _pretrained_query(attn: Any, hidden_states: Tensor) -> Tensor:
    query = _split_heads(attn.to_q(hidden_states), attn.heads)
    return query if attn.norm_q is None else attn.norm_q(query)


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, T, heads * width) => (B, heads, T, width)."""
    return states.view(*states.shape[:-1], heads, -1).transpose(1, 2)


def _join_heads(states: Tensor) -> Tensor:
    """(B, heads, N, width) => (B, N, heads * width)."""
    return states.transpose(1, 2).flatten(2)


def _token_mask(states: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Return what may be looked at, (B, 1, 1, T): bool, or a bias where the caller has a mask of its own."""
    real = (states != 0).any(dim=-1)
    # A prompt without a single token sees its zero rows: softmax over nothing would not be a number.
    seen = (real | ~real.any(dim=-1, keepdim=True))[:, None, None, :]
    if attention_mask is not None:
        theirs = attention_mask.view(attention_mask.shape[0], 1, -1, states.shape[1])
        return _as_bias(seen, states.dtype) + theirs
    # Asking a tensor costs a wait on a GPU: only where the answer is kept for a whole generation.
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and bool(seen.all()):
        return None
    return seen


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
