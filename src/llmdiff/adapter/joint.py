"""Denoisers that do more with text states than hand them to cross-attention.

PixArt and Sana project them first; Stable Diffusion 3 and Flux make them a stream of their own that shares the
image's attention. `SplitText` takes the tensor of the attached `encode_prompt` apart before such a transformer
runs, so that phi(c) goes where text states go and c reaches the attention layers beside it.

The paper knows cross-attention only. For joint attention this is our extension: phi(c), through the
transformer's own text embedder, takes the place of the text stream, and a second attention, from image states
to c, is added to what the joint attention gives to the image stream.
"""

import inspect
import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersJointAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from torch import Tensor, nn

from llmdiff.adapter.layers import heads_of, merge_heads, text_keys_values
from llmdiff.adapter.layout import (
    NO_TEXT,
    TextParts,
    base_text,
    pack_into_mask,
    real_rows,
    rows_of,
    split_text,
)
from llmdiff.adapter.processors import AttachedLayer, CrossAttentionBranch, as_bias, seen_by
from llmdiff.errors import AttachError, UnsupportedPipelineError

KEY = "llm_text"
_PLAIN_JOINT = (JointAttnProcessor2_0, FusedJointAttnProcessor2_0, XFormersJointAttnProcessor)


class JointText(NamedTuple):
    """What the attention layers of a joint transformer get to know of the prompt.

    Shapes:
        llm_states (B, T, D), c; seen (B, 1, 1, T) or None, which rows of c are real; bias (B, 1, 1, rows), what is
        added to the logits of the text stream's rows, None where that is nothing.
    """

    llm_states: Tensor
    seen: Tensor | None
    bias: Tensor | None


class SplitText:
    """A forward pre-hook of a transformer, which takes the tensor of the attached `encode_prompt` apart.

    Nothing is remembered from call to call: c leaves as an argument of the same call.
    """

    def __init__(
        self,
        channel: Literal["mask", "joint"],
        *,
        text_width: int,
        hidden_size: int,
        scale: float,
        keep_base_text: bool,
        strict: bool,
    ) -> None:
        self.channel = channel
        self.text_width = text_width
        self.hidden_size = hidden_size
        self.scale = scale
        self.keep_base_text = keep_base_text
        self.strict = strict

    def __call__(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that the transformer gets instead."""
        if len(args) > 1:
            names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
            args, kwargs = args[:1], {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
        states = kwargs.get("encoder_hidden_states")
        if states is None:
            if self.strict:
                raise AttachError(NO_TEXT)
            return args, kwargs
        parts = split_text(states, self.text_width, self.hidden_size)
        if parts is None:
            return args, {
                **kwargs,
                "encoder_hidden_states": base_text(states, self.text_width, strict=self.strict),
            }
        changed: dict[str, Any] = {"encoder_hidden_states": rows_of(parts)}
        if self.channel == "mask":
            # The mask that came holds no more than c does: its rows are zero where it says padding.
            changed["encoder_attention_mask"] = pack_into_mask(parts)
            return args, {**kwargs, **changed}
        joint = dict(kwargs.get("joint_attention_kwargs") or {})
        joint[KEY] = JointText(parts.llm_states, seen_by(real_rows(parts.llm_states)), self._bias(parts))
        changed["joint_attention_kwargs"] = joint
        ids = kwargs.get("txt_ids")
        if ids is not None and parts.base is not None:
            changed["txt_ids"] = torch.cat([ids, ids], dim=-2)
        return args, {**kwargs, **changed}

    def _bias(self, parts: TextParts) -> Tensor | None:
        """Return what is added to the text rows' logits.

        Adding log(w) to a row's logits weighs it by w in the softmax. phi(c)'s rows get w = scale, the base's
        1 - scale (1 where they are kept as further keys): continuous, and the base pipeline at its end.
        """
        dtype = parts.llm_states.dtype
        ours = real_rows(parts.llm_states)[:, None, None]
        if parts.base is None or parts.base_real is None:
            if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and bool(ours.all()):
                return None
            return as_bias(ours, dtype)
        theirs = as_bias(parts.base_real[:, None, None], dtype)
        if not self.keep_base_text:
            theirs = theirs + math.log1p(-self.scale)
        return torch.cat([as_bias(ours, dtype) + math.log(self.scale), theirs], dim=-1)


class JointTwoBranch(AttachedLayer):
    """Joint attention of image and phi(c), with the new branch from image states to c.

        image = JointAttn(image, text)_image * a1*exp(b1)  +  Attn(q(image), k(c), v(c)) * a2*exp(b2)
        text  = JointAttn(image, text)_text

    Both gates fade with `scale`: a1*exp(b1) to 1, a2*exp(b2) to 0. Image queries of the new branch go through
    the layer's own query norm but carry no position: c has none that an image could be near to. Layers
    without text projections of their own (`branch` None) only get the padding masked.

    Raises:
        UnsupportedPipelineError: the layer has a processor that takes no mask and is not plain.

    Source: our extension of Dong et al. 2024 (arXiv 2502.04412) to joint attention.
    """

    def __init__(self, attn: Any, branch: CrossAttentionBranch | None, *, scale: float = 1.0) -> None:
        super().__init__(attn, branch, scale=scale)
        self.check()

    @property
    def _takes_mask(self) -> bool:
        return isinstance(self.attn, FluxAttention)

    def check(self) -> None:
        """Return nothing if the layer's present processor is one that can be used here.

        Raises:
            UnsupportedPipelineError: it is not.
        """
        kind = type(self.attn.processor)
        known = (FluxAttnProcessor, FluxIPAdapterAttnProcessor) if self._takes_mask else _PLAIN_JOINT
        if kind not in known:
            raise UnsupportedPipelineError(
                f"a joint attention layer has the processor {kind.__name__}, which cannot leave padding out; "
                f"expected one of {', '.join(row.__name__ for row in known)}: unload what installed it "
                "(an IP-Adapter, attention slicing), then try again"
            )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        llm_text: JointText | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what the layer returns: image states, or image and text states (and an IP-Adapter's)."""
        self.read = True
        if llm_text is None:
            return self.original(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        result: Any
        if self._takes_mask:
            # Flux's single blocks get both streams as one.
            total = hidden_states.shape[1] + (
                0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
            )
            if llm_text.bias is not None:
                attention_mask = F.pad(llm_text.bias, (0, total - llm_text.bias.shape[-1]))
            result = self.original(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        elif encoder_hidden_states is None or llm_text.bias is None:
            result = self.original(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        else:
            result = _joint_attention(self.attn, hidden_states, encoder_hidden_states, llm_text.bias)
        if self.branch is None or not isinstance(result, tuple):
            return result
        pretrained_gate, new_gate = self.branch.gates()
        new = self.branch.attend(
            hidden_states, self.branch.read(llm_text.llm_states, llm_text.seen), norm=self.attn.norm_q
        )
        # At scale 1: image * a1*exp(b1) + new * a2*exp(b2); at scale 0: image.
        image = result[0] * (1 + self.scale * (pretrained_gate - 1)) + new * (self.scale * new_gate)
        return (image, *result[1:])


def _joint_attention(attn: Any, image: Tensor, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and text states after JointAttnProcessor2_0's attention, which takes no mask itself."""
    key, value = text_keys_values(attn, text)
    query = torch.cat(
        [
            heads_of(attn.to_q(image), attn.heads, attn.norm_q),
            heads_of(attn.add_q_proj(text), attn.heads, attn.norm_added_q),
        ],
        dim=2,
    )
    key = torch.cat([heads_of(attn.to_k(image), attn.heads, attn.norm_k), key], dim=2)
    value = torch.cat([heads_of(attn.to_v(image), attn.heads), value], dim=2)
    mixed = merge_heads(
        F.scaled_dot_product_attention(query, key, value, attn_mask=F.pad(bias, (image.shape[1], 0)))
    )
    image_out, text_out = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
    if not attn.context_pre_only:
        text_out = attn.to_add_out(text_out)
    return attn.to_out[1](attn.to_out[0](image_out)), text_out
