"""Joint attention with the new branch against an explicit softmax, row by row."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AuraFlowAttnProcessor2_0, JointAttnProcessor2_0
from torch import Tensor

from llmdiff.adapter.families import family_named
from llmdiff.adapter.joint import JointTwoBranch
from llmdiff.adapter.layout import TextLayout
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.adapter.split import JointText, SplitText

WIDTH, HEADS, HIDDEN, IMAGE, TEXT = 12, 2, 10, 5, 4
REAL = torch.tensor([[True] * 4, [True, True, False, False]])


def layer(processor: Any) -> Attention:
    return Attention(
        WIDTH,
        added_kv_proj_dim=WIDTH,
        heads=HEADS,
        dim_head=WIDTH // HEADS,
        out_dim=WIDTH,
        context_pre_only=False,
        bias=True,
        processor=processor,
    ).eval()


def branch() -> CrossAttentionBranch:
    made = CrossAttentionBranch(
        HIDDEN,
        query_dim=WIDTH,
        inner_dim=WIDTH,
        heads=HEADS,
        out_dim=WIDTH,
        query_bias=True,
        out_bias=True,
    )
    with torch.no_grad():
        for gate, value in zip((made.a1, made.b1, made.a2, made.b2), (0.7, 0.2, -0.4, 0.5), strict=True):
            gate.fill_(value)
    return made


def softmax(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of all heads, without scaled_dot_product_attention."""
    width = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        logits = queries[:, part] @ keys[:, part].T / width**0.5
        weights = (logits if bias is None else logits + bias).exp()
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ values[:, part])
    return torch.cat(heads, dim=1)


@pytest.mark.parametrize(
    ("family", "processor"), [("sd3", JointAttnProcessor2_0()), ("auraflow", AuraFlowAttnProcessor2_0())]
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@torch.no_grad()
def test_two_streams_match_the_formula(family: str, processor: Any, scale: float) -> None:
    attn, made = layer(processor), branch()
    image, text = torch.randn(2, IMAGE, WIDTH), torch.randn(2, TEXT, WIDTH)
    llm_states = torch.randn(2, TEXT, HIDDEN).masked_fill(~REAL[..., None], 0)
    weight = torch.tensor([0.5, 1.0, 1.0, 2.0])  # of a text row in the softmax
    bias = weight.log().masked_fill(~REAL, float("-inf"))[:, None, None]
    layout = TextLayout(width=WIDTH, hidden_size=HIDDEN)
    hook = SplitText(family_named(family), attn, layout=layout, scale=scale, keep_base_text=False)
    ours = JointTwoBranch(attn, made, hook=hook, single_stream=False, scale=scale)
    given = JointText(llm_states=llm_states, seen=REAL[:, None, None], bias=bias)
    hook.handed = given
    image_out, text_out = ours.forward(image, text, llm_text=given)
    for row in range(2):
        real, both = REAL[row], torch.cat([weight[REAL[row]].log(), torch.zeros(IMAGE)])
        keys = torch.cat([attn.add_k_proj(text[row][real]), attn.to_k(image[row])])
        values = torch.cat([attn.add_v_proj(text[row][real]), attn.to_v(image[row])])
        pretrained = attn.to_out[0](softmax(attn.to_q(image[row]), keys, values, both))
        new = made.to_out(
            softmax(made.to_q(image[row]), made.to_k(llm_states[row][real]), made.to_v(llm_states[row][real]))
        )
        first, second = 0.7 * torch.tensor(0.2).exp(), -0.4 * torch.tensor(0.5).exp()
        expected = pretrained * (1 + scale * (first - 1)) + new * scale * second
        assert torch.allclose(image_out[row], expected, atol=1e-5)
        text_expected = attn.to_add_out(softmax(attn.add_q_proj(text[row][real]), keys, values, both))
        assert torch.allclose(text_out[row][real], text_expected, atol=1e-5)


@pytest.mark.parametrize("family", ["lumina2", "z-image"])
@torch.no_grad()
def test_one_stream_changes_in_the_rows_of_the_image_alone(family: str) -> None:
    attn = Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, bias=True).eval()
    made, row = branch(), family_named(family)
    counts = torch.tensor([4, 2])
    stream = torch.randn(2, IMAGE + 4, WIDTH)  # [text ; image ; padding], or [image ; text ; padding]
    llm_states = torch.randn(2, TEXT, HIDDEN).masked_fill(~REAL[..., None], 0)
    layout = TextLayout(width=WIDTH, hidden_size=HIDDEN)
    hook = SplitText(row, attn, layout=layout, scale=1.0, keep_base_text=False)
    ours = JointTwoBranch(attn, made, hook=hook, single_stream=True)
    hook.handed = JointText(llm_states=llm_states, seen=REAL[:, None, None], counts=counts, most=4)
    found, plain = ours.forward(stream), attn(stream)
    for one in range(2):
        start = int(counts[one]) if row.text_first else 0
        places = torch.arange(start, start + IMAGE)
        words = llm_states[one][REAL[one]]
        new = made.to_out(softmax(made.to_q(stream[one][places]), made.to_k(words), made.to_v(words)))
        first, second = made.gates()
        expected = plain[one].clone()
        expected[places] = plain[one][places] * first + new * second
        assert torch.allclose(found[one], expected, atol=1e-5)
