"""Attach to denoisers that process text states before or besides cross-attention.

PixArt and Sana project them first; Stable Diffusion 3 and Flux process them in a text stream with joint attention.
`SplitText` splits the tensor of the attached `encode_prompt` before such a transformer runs: phi(c) replaces the
text states, and c is passed to the attention layers separately.

The paper covers cross-attention only. Joint attention is our extension: phi(c), through the transformer's own
text embedder, replaces the text stream, and a second attention, from image states to c, is added to the joint
attention's output for the image stream.
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
    """The text inputs of a joint transformer's attention layers.

    Shapes:
        llm_states (B, T, D), c; seen (B, 1, 1, T) or None, which rows of c are real; bias (B, 1, 1, rows), what is
        added to the logits of the text stream's rows, None where that is nothing.
    """

    llm_states: Tensor
    seen: Tensor | None
    bias: Tensor | None


class SplitText:
    """Forward pre-hook of a transformer that splits the tensor of the attached `encode_prompt`.

    The hook keeps no state between calls: c is passed on as an argument of the same call.
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
        """Return the changed arguments of the transformer."""
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
            # The given mask is redundant: padding rows of c are zero.
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
        """Return the bias of the text rows' logits.

        Adding log(w) to a row's logits weights it by w in the softmax. phi(c)'s rows have w = scale, the base's
        1 - scale (1 with `keep_base_text`): continuous in scale, and the base pipeline at scale 0.
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

    As `scale` goes to 0, a1*exp(b1) goes to 1 and a2*exp(b2) to 0. Image queries of the new branch pass the
    layer's own query norm but get no positional embedding, as c has no position in the image. In layers
    without text projections (`branch` None) only the padding is masked.

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
        """Check that the layer's current processor is supported.

        Raises:
            UnsupportedPipelineError: it is not supported.
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
        """Return the layer's outputs: image states, or image and text states (and an IP-Adapter's)."""
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
