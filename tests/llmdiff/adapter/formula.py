"""The two-branch formula, written out token by token, and layers to hold against it."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.layout import TextLayout, beside_base
from llmdiff.adapter.processors import CrossAttentionBranch

QUERY, WIDTH, HIDDEN, HEADS, HEAD = 12, 10, 14, 2, 4


def layer(**more: Any) -> Attention:
    return Attention(QUERY, cross_attention_dim=WIDTH, heads=HEADS, dim_head=HEAD, **more).eval()


def branch() -> CrossAttentionBranch:
    made = CrossAttentionBranch(
        HIDDEN,
        query_dim=QUERY,
        inner_dim=HEADS * HEAD,
        heads=HEADS,
        out_dim=QUERY,
        query_bias=False,
        out_bias=True,
    )
    with torch.no_grad():
        for gate, value in zip((made.a1, made.b1, made.a2, made.b2), (0.7, 0.2, -0.4, 0.5), strict=True):
            gate.fill_(value)
    return made


def attached(
    attn: Attention, *, original: Any = None, strict: bool = False, **more: Any
) -> TwoBranchAttention:
    if original is not None:
        attn.set_processor(original)
    layout = TextLayout(width=WIDTH, hidden_size=HIDDEN, strict=strict)
    return TwoBranchAttention(attn, branch(), layout=layout, **more)


def explicit_attention(image: Tensor, text: Tensor, real: Tensor, q: Any, k: Any, v: Any, out: Any) -> Tensor:
    """Softmax attention token by token, without scaled_dot_product_attention."""
    result = []
    for row in range(image.shape[0]):
        words = text[row][real[row]]
        heads = []
        for head in range(HEADS):
            part = slice(head * HEAD, (head + 1) * HEAD)
            queries, keys, values = q(image[row])[:, part], k(words)[:, part], v(words)[:, part]
            logits = queries @ keys.T / HEAD**0.5
            weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
            heads.append(weights @ values)
        result.append(out(torch.cat(heads, dim=1)))
    return torch.stack(result)


def padded_text(*lengths: int, tokens: int = 5, base_tokens: int = 0) -> tuple[Tensor, Tensor]:
    real = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    states = torch.randn(len(lengths), tokens, WIDTH + HIDDEN).masked_fill(~real[..., None], 0)
    if base_tokens:
        states = beside_base(states, torch.randn(len(lengths), base_tokens, WIDTH), None)
    return states, real


@torch.no_grad()
def formula(attn: Any, made: CrossAttentionBranch, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
    aligned, own = text[..., :WIDTH], text[..., WIDTH : WIDTH + HIDDEN]
    pretrained = explicit_attention(image, aligned, real, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    ours = explicit_attention(image, own, real, made.to_q, made.to_k, made.to_v, made.to_out)
    return pretrained * made.a1 * torch.exp(made.b1) + ours * made.a2 * torch.exp(made.b2)
