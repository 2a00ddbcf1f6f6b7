"""The hooks against the library's own attached layers, and against the formula token by token."""

import copy
from typing import Any

import pytest
import torch
from comfy_hooks import call_hooks, plain_attention, text_attention
from torch import Tensor

from comfyui.attention import TextAttention
from comfyui.model import check_model
from llmdiff.adapter import LLMDiffAdapter, install
from llmdiff.adapter.layout import beside_base, pad_rows
from llmdiff.errors import AttachError, ConfigError, UnsupportedPipelineError
from llmdiff.types import TextEncoding
from tests.llmdiff.adapter.conftest import build_adapter
from tests.llmdiff.adapter.formula import (
    HEADS,
    HIDDEN,
    QUERY,
    WIDTH,
    branch,
    explicit_attention,
    formula,
    layer,
    padded_text,
)

PLACE = ("input", 4, 0)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def adapter(pipe: Any, tiny_llm: Any) -> LLMDiffAdapter:
    made = build_adapter(pipe, tiny_llm)
    for name, parameter in made.named_parameters():
        if name.endswith((".b1", ".a1")):
            parameter.fill_(0.3)  # a gate of the pretrained half far from 1
    return made


def texts(adapter: LLMDiffAdapter, *lengths: int, base_tokens: int = 0) -> Tensor:
    hidden_size = adapter.norm.normalized_shape[0]
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    states, _ = adapter.condition(TextEncoding(states=torch.randn(*mask.shape, hidden_size), token_mask=mask))
    if base_tokens:
        states = beside_base(states, torch.randn(len(lengths), base_tokens, adapter.phi.out_features), None)
    return states


def predictions(unet: Any, states: Tensor) -> Tensor:
    more = {}
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        more["added_cond_kwargs"] = {
            "text_embeds": torch.randn(len(states), width, generator=torch.Generator().manual_seed(1)),
            "time_ids": torch.zeros(len(states), 6),
        }
    noise = torch.randn(len(states), 4, 8, 8, generator=torch.Generator().manual_seed(2))
    result: Tensor = unet(noise, 500, encoder_hidden_states=states, **more).sample
    return result


@pytest.mark.parametrize(
    ("settings", "base_tokens"),
    [
        ({}, 0),
        ({}, 7),
        ({"scale": 0.6}, 7),
        ({"scale": 0.0}, 7),
        ({"keep_base_text": True}, 7),
        ({"scale": 0.3, "keep_base_text": True}, 2),
    ],
)
def test_a_unet_with_hooks_predicts_what_the_library_does(
    pipe: Any, adapter: LLMDiffAdapter, settings: dict[str, Any], base_tokens: int
) -> None:
    states = texts(adapter, 5, 2, base_tokens=base_tokens)
    hooked = copy.deepcopy(pipe.unet)
    call_hooks(hooked, text_attention(hooked, adapter, **settings))
    with install(pipe.unet, adapter, **settings):
        ours = predictions(pipe.unet, states)
    assert (predictions(hooked, states) - ours).abs().max() < 1e-5
    if settings.get("scale") != 0.0:
        alone = texts(adapter, 5, 2, base_tokens=base_tokens)
        assert (predictions(hooked, alone) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [(5, 5), (5, 3), (4, 0)])
def test_a_layer_is_the_formula(lengths: tuple[int, int]) -> None:
    attn, made = layer(), branch()
    states, real = padded_text(*lengths)
    image = torch.randn(2, 6, QUERY)
    result = run(hooks(made), attn, image, states)
    for row, length in enumerate(lengths):
        if length:  # a softmax over no token is no number in the formula
            one = formula(attn, made, image[row : row + 1], states[row : row + 1], real[row : row + 1])
            assert torch.allclose(result[row : row + 1], one, atol=1e-5)
    assert bool(torch.isfinite(result).all())


def test_a_scale_mixes_with_the_base_text() -> None:
    attn, made = layer(), branch()
    states, real = padded_text(5, 3, base_tokens=4)
    image = torch.randn(2, 6, QUERY)
    base = states[:, :, WIDTH + HIDDEN : -1]
    seen = states[..., -1] != 0
    alone = explicit_attention(image, base, seen, attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    expected = 0.75 * alone + 0.25 * formula(attn, made, image, states, real)
    assert torch.allclose(run(hooks(made, scale=0.25), attn, image, states), expected, atol=1e-5)


def test_a_gain_weighs_the_new_half_of_its_blocks() -> None:
    attn, made = layer(), branch()
    states, real = padded_text(5, 5)
    image = torch.randn(2, 6, QUERY)
    full = formula(attn, made, image, states, real)
    ours = explicit_attention(image, states[..., WIDTH:], real, made.to_q, made.to_k, made.to_v, made.to_out)
    expected = full - 0.5 * ours * made.a2 * torch.exp(made.b2)
    assert torch.allclose(run(hooks(made, gains={"input": 0.5}), attn, image, states), expected, atol=1e-5)
    assert torch.allclose(run(hooks(made, gains={"output": 0.5}), attn, image, states), full, atol=1e-5)


def test_repeating_a_text_changes_nothing() -> None:
    # How ComfyUI batches a prompt and a negative prompt of different lengths.
    attn, made = layer(), branch()
    states, _ = padded_text(3, 3, tokens=3)
    image = torch.randn(2, 6, QUERY)
    once, twice = (run(hooks(made), attn, image, states.repeat(1, times, 1)) for times in (1, 2))
    assert torch.allclose(once, twice, atol=1e-5)


def test_outside_its_range_the_layer_reads_the_base_text_alone() -> None:
    attn, made = layer(), branch()
    states, _ = padded_text(5, 3, base_tokens=7)
    image = torch.randn(2, 6, QUERY)
    ranged = hooks(made, start_sigma=10.0, end_sigma=1.0)
    base = attn(image, states[:, :, WIDTH + HIDDEN : -1])
    for sigma in (12.0, 0.5):
        assert torch.allclose(run(ranged, attn, image, states, sigma=sigma), base, atol=1e-5)
    inside = run(hooks(made), attn, image, states)
    for sigma in (10.0, 5.0, 1.0):
        assert torch.equal(run(ranged, attn, image, states, sigma=sigma), inside)


def test_a_conditioning_of_the_models_own_text_encoder_is_not_changed() -> None:
    attn, image, states = layer(), torch.randn(2, 6, QUERY), torch.randn(2, 4, WIDTH)
    assert torch.allclose(run(hooks(branch()), attn, image, states), attn(image, states), atol=1e-6)


def test_another_extensions_attention_is_called() -> None:
    attn, made = layer(), branch()
    states, _ = padded_text(5, 5)
    image = torch.randn(2, 6, QUERY)

    def louder(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        return plain_attention(query, key, value, extra) + 1

    added = run(hooks(made), attn, image, states, previous=louder) - run(hooks(made), attn, image, states)
    gate = made.a1 * torch.exp(made.b1)
    assert torch.allclose(added, (attn.to_out[0].weight.sum(1) * gate).expand_as(added), atol=1e-5)


def test_another_extensions_attention_cannot_take_a_mask() -> None:
    states, _ = padded_text(5, 3)
    with pytest.raises(AttachError, match="plain_attention has replaced the attention"):
        run(hooks(branch()), layer(), torch.randn(2, 6, QUERY), states, previous=plain_attention)


def test_a_later_replacement_is_reported_where_the_text_needs_ours() -> None:
    attn, image = layer(), torch.randn(1, 6, QUERY)
    made = hooks(branch())
    whole, _ = padded_text(5)
    assert bool(torch.isfinite(run(made, attn, image, whole, replaced_by=plain_attention)).all())
    for states in (pad_rows(whole, 8), padded_text(5, base_tokens=5)[0]):
        with pytest.raises(AttachError, match="after Apply LLMDiff"):
            run(made, attn, image, states, replaced_by=plain_attention)


@pytest.mark.parametrize(
    "settings", [{"scale": 0.5}, {"keep_base_text": True}, {"start_sigma": 0.5}, {"end_sigma": 2.0}]
)
def test_a_missing_base_text_is_named(settings: dict[str, Any]) -> None:
    states, _ = padded_text(5)
    with pytest.raises(ConfigError, match="input base of LLMDiff Encode"):
        run(hooks(branch(), **settings), layer(), torch.randn(1, 6, QUERY), states)


def test_text_of_another_adapter_is_named() -> None:
    with pytest.raises(AttachError, match="same adapter"):
        run(hooks(branch()), layer(), torch.randn(1, 6, QUERY), torch.randn(1, 4, WIDTH + HIDDEN + 3))


def test_text_that_another_extension_has_changed_is_named() -> None:
    states, _ = padded_text(5)
    with pytest.raises(AttachError, match="put Apply LLMDiff before that node"):
        hooks(branch()).before(torch.randn(1, 6, QUERY), states, states * 2, options(1.0))


def test_a_deep_copy_of_the_options_keeps_the_weights() -> None:
    made = hooks(branch())
    patches = copy.deepcopy({"attn2_patch": [made.before]})
    assert patches["attn2_patch"][0].__self__ is made


def hooks(made: Any, **settings: Any) -> TextAttention:
    return TextAttention(
        {PLACE: made}, text_width=WIDTH, hidden_size=HIDDEN, attention=plain_attention, **settings
    )


def options(sigma: float) -> dict[str, Any]:
    return {
        "block": PLACE[:2],
        "block_index": PLACE[2],
        "n_heads": HEADS,
        "attn_precision": None,
        "sigmas": torch.tensor([sigma]),
    }


def run(
    made: TextAttention,
    attn: Any,
    image: Tensor,
    states: Tensor,
    *,
    sigma: float = 1.0,
    previous: Any = None,
    replaced_by: Any = None,
) -> Tensor:
    extra = options(sigma)
    image, context, value = made.before(image, states, states, extra)
    attend = replaced_by or made.replacing(previous)
    out = attend(attn.to_q(image), attn.to_k(context), attn.to_v(value), extra)
    return made.after(attn.to_out[0](out), extra)


def test_an_adapter_with_routing_is_refused_by_name(sd_pipe: Any, tiny_llm: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match="the adapter has routing 2"):
        check_model(object(), build_adapter(sd_pipe, tiny_llm, routing=2))
