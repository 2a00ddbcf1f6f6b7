"""The two-branch formula against an explicit softmax, padding, and what is kept between steps."""

import copy
import gc
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from torch import Tensor

from llmdiff.adapter.processors import CrossAttentionBranch, TwoBranchAttnProcessor
from llmdiff.errors import UnsupportedPipelineError

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


def processor(attn: Attention, *, original: Any = None, scale: float = 1.0) -> TwoBranchAttnProcessor:
    original = AttnProcessor2_0() if original is None else original
    return TwoBranchAttnProcessor(branch(), original, attn, text_width=WIDTH, scale=scale)


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
        base = torch.randn(len(lengths), tokens, WIDTH)
        base[:, base_tokens:] = 0
        states = torch.cat([states, base], dim=-1)
    return states, real


@torch.no_grad()
def formula(attn: Any, made: CrossAttentionBranch, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
    aligned, own = text[..., :WIDTH], text[..., WIDTH : WIDTH + HIDDEN]
    pretrained = explicit_attention(image, aligned, real, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    ours = explicit_attention(image, own, real, made.to_q, made.to_k, made.to_v, made.to_out)
    return pretrained * made.a1 * torch.exp(made.b1) + ours * made.a2 * torch.exp(made.b2)


@pytest.mark.parametrize(
    "original", [AttnProcessor2_0(), AttnProcessor(), SlicedAttnProcessor(2)], ids=lambda p: type(p).__name__
)
def test_two_branches_match_the_formula(original: Any) -> None:
    attn = layer()
    ours = processor(attn, original=original)
    image, (text, real) = torch.randn(3, 6, QUERY), padded_text(5, 3, 1)
    expected = formula(attn, ours.branch, image, text, real)
    assert torch.allclose(ours(attn, image, text), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(ours(attn, image, text), expected, atol=1e-5)


def test_fused_projections_are_called_by_the_pretrained_branch() -> None:
    attn = layer()
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    ours = processor(attn, original=FusedAttnProcessor2_0())
    expected = formula(attn, ours.branch, image, text, real)
    attn.fuse_projections()
    assert torch.allclose(ours(attn, image, text), expected, atol=1e-5)


def test_scale_mixes_with_attention_over_the_base_states() -> None:
    attn = layer()
    ours = processor(attn, scale=0.3)
    image, (text, real) = torch.randn(2, 6, QUERY), padded_text(5, 2, base_tokens=4)
    base_real = torch.tensor([[True] * 4 + [False]] * 2)
    with torch.no_grad():
        base = explicit_attention(
            image, text[..., WIDTH + HIDDEN :], base_real, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]
        )
    expected = 0.7 * base + 0.3 * formula(attn, ours.branch, image, text, real)
    assert torch.allclose(ours(attn, image, text), expected, atol=1e-5)


def test_residual_norm_rescale_and_image_shape_follow_diffusers() -> None:
    attn = layer(residual_connection=True, rescale_output_factor=2.0, norm_num_groups=3)
    ours = processor(attn)
    image, (text, real) = torch.randn(2, QUERY, 2, 3), padded_text(5, 3)
    flat = attn.group_norm(image.flatten(2)).transpose(1, 2)
    expected = formula(attn, ours.branch, flat, text, real).transpose(1, 2).reshape(image.shape)
    assert torch.allclose(ours(attn, image, text), (expected + image) / 2, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_padding_changes_nothing(scale: float) -> None:
    attn = layer()
    ours = processor(attn, scale=scale)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(4, 2, base_tokens=3 if scale < 1 else 0)
    longer = torch.nn.functional.pad(text, (0, 0, 0, 7))
    left = torch.nn.functional.pad(text, (0, 0, 3, 0))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = ours(attn, image, text)
            assert torch.allclose(ours(attn, image, longer), expected, atol=1e-5)
            assert torch.allclose(ours(attn, image, left), expected, atol=1e-5)


def test_a_text_without_tokens_gives_numbers() -> None:
    attn = layer()
    ours = processor(attn)
    text = torch.zeros(2, 3, WIDTH + HIDDEN)
    text[0, 0] = 1.0
    image = torch.randn(2, 6, QUERY)
    expected = attn.to_out[0].bias * ours.branch.gates()[0] + ours.branch.to_out.bias * ours.branch.gates()[1]
    assert torch.allclose(ours(attn, image, text)[1], expected.expand(6, -1), atol=1e-5)


def test_a_mask_of_the_caller_is_used() -> None:
    attn = layer()
    ours = processor(attn)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 5)
    bias = torch.zeros(2, 1, 5)
    bias[:, :, 3:] = -10000.0
    assert torch.allclose(ours(attn, image, text, bias), ours(attn, image, text[:, :3]), atol=1e-5)


def test_states_of_the_base_width_get_the_original_attention() -> None:
    attn = layer()
    text, image = torch.randn(2, 5, WIDTH), torch.randn(2, 6, QUERY)
    assert torch.equal(processor(attn)(attn, image, text), AttnProcessor2_0()(attn, image, text))


def test_another_width_is_refused_by_number() -> None:
    attn = layer()
    with pytest.raises(ValueError, match=f"width 7, expected {WIDTH}"):
        processor(attn)(attn, torch.randn(1, 6, QUERY), torch.randn(1, 2, 7))


class Counting:
    def __init__(self, *modules: torch.nn.Module) -> None:
        self.calls = 0
        for module in modules:
            module.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.calls += 1


def test_keys_and_values_are_kept_for_one_tensor_only() -> None:
    attn = layer()
    ours = processor(attn)
    count = Counting(attn.to_k, ours.branch.to_k)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    with torch.no_grad():
        first = ours(attn, image, text)
        assert torch.equal(ours(attn, image, text), first)
        assert count.calls == 2
        # Equal values in another tensor, other values in the same tensor, other weights: all computed anew.
        assert torch.equal(ours(attn, image, text.clone()), first)
        assert count.calls == 4
        text.mul_(0.5)
        changed = ours(attn, image, text)
        assert count.calls == 6
        assert not torch.equal(changed, first)
        ours.branch.to_k.weight.mul_(0.5)
        assert not torch.equal(ours(attn, image, text), changed)
        assert count.calls == 8


def test_nothing_is_kept_with_gradients_or_in_inference_mode() -> None:
    attn = layer()
    ours = processor(attn)
    count = Counting(ours.branch.to_k)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    ours(attn, image, text)
    ours(attn, image, text).sum().backward()
    assert count.calls == 2
    assert ours.branch.to_k.weight.grad is not None
    with torch.inference_mode():
        text = text.clone()
        before = ours(attn, image, text)
        text.mul_(0.5)
        assert not torch.equal(ours(attn, image, text), before)


def test_what_is_kept_goes_with_its_tensor() -> None:
    attn = layer()
    ours = processor(attn)
    text, _ = padded_text(5, 3)
    with torch.no_grad():
        ours(attn, torch.randn(2, 6, QUERY), text)
    assert len(ours._kept) == 1
    del text
    gc.collect()
    assert len(ours._kept) == 0


def test_a_deep_copy_is_on_its_own() -> None:
    attn = layer()
    ours = processor(attn)
    image, (text, _) = torch.randn(2, 6, QUERY), padded_text(5, 3)
    with torch.no_grad():
        before = ours(attn, image, text)
        twin_attn, twin = copy.deepcopy((attn, ours))
        assert torch.equal(twin(twin_attn, image, text), before)
        twin.branch.to_v.weight.zero_()
        assert not torch.equal(twin(twin_attn, image, text), before)
        assert torch.equal(ours(attn, image, text), before)


def test_place_copies_instead_of_moving() -> None:
    ours = processor(layer())
    shared = ours.branch
    ours.place(torch.device("cpu"), torch.float32)
    assert ours.branch is shared
    ours.place(torch.device("cpu"), torch.bfloat16)
    assert ours.branch.to_q.weight.dtype == torch.bfloat16
    assert shared.to_q.weight.dtype == torch.float32


def test_processors_of_other_extensions_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedPipelineError, match="IPAdapterAttnProcessor2_0"):
        processor(layer(), original=IPAdapterAttnProcessor2_0(QUERY, WIDTH))
    with pytest.raises(UnsupportedPipelineError, match="SlicedAttnProcessor"):
        processor(layer(residual_connection=True), original=SlicedAttnProcessor(2))
