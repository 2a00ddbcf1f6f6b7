"""The two-branch formula against an explicit softmax, and padding."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)

from llmdiff.adapter.cross import TwoBranchAttention
from llmdiff.adapter.layout import TextLayout
from llmdiff.errors import AttachError, UnsupportedPipelineError

from .formula import (
    HEAD,
    HEADS,
    HIDDEN,
    QUERY,
    WIDTH,
    attached,
    explicit_attention,
    formula,
    layer,
    padded_text,
)


@pytest.mark.parametrize(
    "original", [AttnProcessor2_0(), AttnProcessor(), SlicedAttnProcessor(2)], ids=lambda p: type(p).__name__
)
def test_two_branches_match_the_formula(original: Any) -> None:
    attn = layer()
    ours = attached(attn, original=original)
    image, (text, real) = torch.randn(3, 6, QUERY), padded_text(5, 3, 1)
    expected = formula(attn, ours.branch, image, text, real)
    assert torch.allclose(ours.forward(image, text), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(ours.forward(image, text), expected, atol=1e-5)


def test_fused_projections_are_called_by_the_pretrained_branch() -> None:
    attn = layer()
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    ours = attached(attn, original=FusedAttnProcessor2_0())
    expected = formula(attn, ours.branch, image, text, real)
    attn.fuse_projections()
    assert torch.allclose(ours.forward(image, text), expected, atol=1e-5)


def test_scale_mixes_with_attention_over_the_base_states() -> None:
    attn = layer()
    ours = attached(attn, scale=0.3)
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 2, base_tokens=4)
    base_real = torch.tensor([[True] * 4 + [False]] * 2)
    with torch.no_grad():
        base = explicit_attention(
            image, text[..., WIDTH + HIDDEN : -1], base_real, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]
        )
    expected = 0.7 * base + 0.3 * formula(attn, ours.branch, image, text, real)
    assert torch.allclose(ours.forward(image, text), expected, atol=1e-5)


def test_residual_norm_rescale_and_image_shape_follow_diffusers() -> None:
    attn = layer(residual_connection=True, rescale_output_factor=2.0, norm_num_groups=3)
    ours = attached(attn)
    image, (text, real) = torch.randn(2, QUERY, 2, 3), padded_text(5, 3)
    flat = attn.group_norm(image.flatten(2)).transpose(1, 2)
    expected = formula(attn, ours.branch, flat, text, real).transpose(1, 2).reshape(image.shape)
    assert torch.allclose(ours.forward(image, text), (expected + image) / 2, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_padding_changes_nothing(scale: float) -> None:
    attn = layer()
    ours = attached(attn, scale=scale)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(4, 2, base_tokens=3 if scale < 1 else 0)
    longer = torch.nn.functional.pad(text, (0, 0, 0, 7))
    left = torch.nn.functional.pad(text, (0, 0, 3, 0))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = ours.forward(image, text)
            assert torch.allclose(ours.forward(image, longer), expected, atol=1e-5)
            assert torch.allclose(ours.forward(image, left), expected, atol=1e-5)


def test_a_text_without_tokens_gives_numbers() -> None:
    attn = layer()
    ours = attached(attn)
    text = torch.zeros(2, 3, WIDTH + HIDDEN)
    text[0, 0] = 1.0
    image = torch.randn(2, 6, QUERY)
    expected = attn.to_out[0].bias * ours.branch.gates()[0] + ours.branch.to_out.bias * ours.branch.gates()[1]
    assert torch.allclose(ours.forward(image, text)[1], expected.expand(6, -1), atol=1e-5)


def test_a_mask_of_the_caller_is_used() -> None:
    attn = layer()
    ours = attached(attn)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 5)
    bias = torch.zeros(2, 1, 5)
    bias[:, :, 3:] = -10000.0
    assert torch.allclose(ours.forward(image, text, bias), ours.forward(image, text[:, :3]), atol=1e-5)


def test_states_of_the_base_width_get_the_original_attention() -> None:
    attn = layer()
    text, image = torch.randn(2, 5, WIDTH), torch.randn(2, 6, QUERY)
    expected = AttnProcessor2_0()(attn, image, text)
    assert torch.equal(attached(attn).forward(image, text), expected)
    assert torch.equal(
        attached(attn).forward(image, torch.nn.functional.pad(text, (0, 1), value=1)), expected
    )
    with pytest.raises(AttachError, match="this pipeline is not"):
        attached(attn, strict=True).forward(image, text)


def test_another_width_is_refused_by_number() -> None:
    attn = layer()
    with pytest.raises(ValueError, match=f"width 7, expected {WIDTH}"):
        attached(attn).forward(torch.randn(1, 6, QUERY), torch.randn(1, 2, 7))


def test_place_copies_instead_of_moving() -> None:
    ours = attached(layer())
    shared = ours.branch
    ours.place(torch.device("cpu"), torch.float32)
    assert ours.branch is shared
    ours.place(torch.device("cpu"), torch.bfloat16)
    assert ours.branch.to_q.weight.dtype == torch.bfloat16
    assert shared.to_q.weight.dtype == torch.float32


def test_processors_of_other_extensions_are_refused_by_name() -> None:
    class Foreign(AttnProcessor2_0):
        pass

    with pytest.raises(UnsupportedPipelineError, match="Foreign"):
        attached(layer(), original=Foreign())
    with pytest.raises(UnsupportedPipelineError, match="SlicedAttnProcessor"):
        attached(layer(residual_connection=True), original=SlicedAttnProcessor(2))


def test_kept_base_text_is_more_keys_for_the_pretrained_branch() -> None:
    attn = layer()
    ours = attached(attn, keep_base_text=True)
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 2, base_tokens=4)
    made = ours.branch
    assert made is not None
    rows = torch.cat([text[..., :WIDTH], text[..., WIDTH + HIDDEN : -1]], dim=1)
    seen = torch.cat([real, torch.tensor([[True] * 4 + [False]] * 2)], dim=1)
    with torch.no_grad():
        both = explicit_attention(image, rows, seen, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
        own = text[..., WIDTH : WIDTH + HIDDEN]
        new = explicit_attention(image, own, real, made.to_q, made.to_k, made.to_v, made.to_out)
        gates = made.gates()
        assert torch.allclose(ours.forward(image, text), both * gates[0] + new * gates[1], atol=1e-5)


def test_without_a_branch_the_layer_sees_the_aligned_text_only() -> None:
    attn = layer()
    ours = TwoBranchAttention(attn, None, layout=TextLayout(width=WIDTH, hidden_size=HIDDEN))
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 2)
    with torch.no_grad():
        expected = explicit_attention(
            image, text[..., :WIDTH], real, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]
        )
        assert torch.allclose(ours.forward(image, text), expected, atol=1e-5)


def test_what_an_ip_adapter_adds_stays_as_it_is() -> None:
    attn = layer()
    ours = attached(attn)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 2)
    without = ours.forward(image, text)
    # Images of width WIDTH, 4 tokens each; hidden size is that of the keys.
    pictures = IPAdapterAttnProcessor2_0(HEADS * HEAD, WIDTH, scale=0.6)
    attn.set_processor(pictures)
    tokens = torch.randn(2, 1, 4, WIDTH)
    with torch.no_grad():
        found = ours.forward(image, (text, [tokens]))
        everywhere = torch.ones(2, 4, dtype=torch.bool)
        into = torch.nn.Linear(HEADS * HEAD, QUERY, bias=False)
        into.weight.copy_(attn.to_out[0].weight)
        added = explicit_attention(
            image, tokens[:, 0], everywhere, attn.to_q, pictures.to_k_ip[0], pictures.to_v_ip[0], into
        )
    assert torch.allclose(found, without + 0.6 * added, atol=1e-5)
