"""attach / detach on real pipelines: exact inverses, copies, sharing, gradients, clear refusals."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from llmdiff.adapter import (
    LLMDiffAdapter,
    attach,
    detach,
    install,
    is_attached,
    layers,
)
from llmdiff.errors import (
    AdapterMismatchError,
    AttachError,
    ConfigError,
    UnsupportedPipelineError,
)
from llmdiff.types import TextEncoding

Draw = Callable[..., torch.Tensor]


def test_detach_is_the_exact_inverse(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw, processors: Any, same_objects: Any
) -> None:
    objects, base, attributes = processors(pipe), draw(pipe), set(vars(pipe))
    attach(pipe, tiny_llm, loud_adapter)
    assert is_attached(pipe)
    assert "encode_prompt" in vars(pipe)
    ours = draw(pipe)
    assert (ours - base).abs().max() > 0.01
    detach(pipe)
    assert same_objects(pipe, objects)
    assert set(vars(pipe)) == attributes
    assert not is_attached(pipe)
    assert pipe.encode_prompt.__func__ is type(pipe).encode_prompt
    assert torch.equal(draw(pipe), base)
    attach(pipe, tiny_llm, loud_adapter)
    assert torch.equal(draw(pipe), ours)
    detach(pipe)


def test_a_replaced_encode_prompt_comes_back(pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter) -> None:
    mine = type(pipe).encode_prompt.__get__(pipe)
    pipe.encode_prompt = mine
    attach(pipe, tiny_llm, loud_adapter)
    detach(pipe)
    assert vars(pipe)["encode_prompt"] is mine


def test_the_saved_pipeline_stays_the_base(attached: Any, tmp_path: Any, draw: Draw) -> None:
    names = set(attached.unet.state_dict())
    assert not any("processor" in name or "branch" in name for name in names)
    attached.save_pretrained(tmp_path)
    detach(attached)
    base = draw(attached)
    assert set(attached.unet.state_dict()) == names
    loaded = type(attached).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), base)


@pytest.mark.parametrize("negative_prompt", [None, "green dog"])
def test_scale_is_continuous_and_zero_is_the_base(
    pipe: Any,
    tiny_llm: Any,
    loud_adapter: LLMDiffAdapter,
    draw: Draw,
    negative_prompt: str | None,
    processors: Any,
    same_objects: Any,
) -> None:
    objects, base = processors(pipe), draw(pipe, negative_prompt=negative_prompt)
    images = {}
    for scale in (0.0, 1e-5, 0.25, 0.5, 0.75, 1 - 1e-5, 1.0):
        attach(pipe, tiny_llm, loud_adapter, scale=scale)
        if scale == 0:
            assert same_objects(pipe, objects)
        images[scale] = draw(pipe, negative_prompt=negative_prompt)
        detach(pipe)
    assert torch.equal(images[0.0], base)
    assert (images[1e-5] - base).abs().max() < 1e-3
    assert (images[1 - 1e-5] - images[1.0]).abs().max() < 1e-3
    for lower, upper in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)):
        assert 0 < (images[upper] - images[lower]).abs().mean() < (images[1.0] - base).abs().max()


def test_an_adapter_draws_at_its_own_scale_unless_told(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    def drawn(**told: float) -> torch.Tensor:
        attach(pipe, tiny_llm, loud_adapter, **told)
        image = draw(pipe)
        detach(pipe)
        return image

    alone, mixed = drawn(scale=1.0), drawn(scale=0.4)
    assert torch.equal(drawn(), alone)  # as in the paper, unless its author found a better one
    loud_adapter.register_to_config(scale=0.4)
    assert torch.equal(drawn(), mixed)
    assert torch.equal(drawn(scale=1.0), alone)
    assert not torch.equal(alone, mixed)


def test_deep_copies_are_attached_on_their_own(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    base = draw(pipe)
    attach(pipe, tiny_llm, loud_adapter)
    ours = draw(pipe)
    twin = copy.deepcopy(pipe)
    assert twin.encode_prompt.llm is tiny_llm
    assert twin.encode_prompt.pipe is twin
    assert twin.encode_prompt.adapter is not loud_adapter
    assert torch.equal(draw(twin), ours)
    detach(pipe)
    assert torch.equal(draw(twin), ours)
    detach(twin)
    assert torch.equal(draw(twin), base)
    assert torch.equal(draw(pipe), base)


def test_pipelines_share_an_llm_and_an_adapter(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    first, second = pipe, copy.deepcopy(pipe)
    attach(first, tiny_llm, loud_adapter)
    ours = draw(first)
    attach(second, tiny_llm, loud_adapter)
    assert torch.equal(draw(second), ours)
    assert torch.equal(draw(first), ours)
    detach(first)
    assert torch.equal(draw(second), ours)


def test_a_half_precision_pipeline_leaves_the_adapter_alone(
    make_sd: Any, tiny_llm: Any, draw: Draw, make_adapter: Any
) -> None:
    pipe = make_sd()
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    expected = draw(pipe)
    pipe.to(torch.bfloat16)
    assert (draw(pipe) - expected).abs().mean() < 0.05
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    pipe.to(torch.float32)


def test_gradients_reach_the_adapter_and_nothing_else(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, processors: Any, same_objects: Any
) -> None:
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
    updates = tiny_llm.block_updates(["a red cat", "two dog"], lone="token+bos")
    assert loud_adapter.context is not None
    noise = torch.Generator().manual_seed(0)
    encoding = TextEncoding(
        states=loud_adapter.context.sum(updates, generator=noise), token_mask=updates.token_mask
    )
    extra = {}
    states, pooled = loud_adapter.condition(encoding)
    if pooled is not None:
        extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6)}
    before = processors(pipe)
    with install(pipe.unet, loud_adapter):
        pipe.unet(
            torch.randn(2, 4, 8, 8), 10, encoder_hidden_states=states, **extra
        ).sample.square().mean().backward()
    assert same_objects(pipe, before)
    assert not is_attached(pipe)
    silent = [
        name for name, p in loud_adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []
    frozen = [*pipe.unet.parameters(), *pipe.text_encoder.parameters(), *tiny_llm.model.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_wrong_order_of_calls(pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter) -> None:
    with pytest.raises(AttachError, match="no LLM attached"):
        detach(pipe)
    attach(pipe, tiny_llm, loud_adapter)
    with pytest.raises(AttachError, match="already has an LLM"):
        attach(pipe, tiny_llm, loud_adapter)
    detach(pipe)
    with pytest.raises(AttachError):
        detach(pipe)


def test_a_forward_replaced_while_attached_is_named(attached: Any, draw: Draw) -> None:
    name, layer = next(iter(layers.text_layers(attached.unet).items()))
    ours: Any = layer.forward
    layer.forward = lambda *args, **more: ours(*args, **more)  # type: ignore[method-assign]
    for act in (draw, detach):
        with pytest.raises(AttachError, match=f"forward of {name} was replaced"):
            act(attached)
    assert is_attached(attached)
    layer.forward = ours  # type: ignore[method-assign]
    detach(attached)


def test_mismatches_name_both_sides_and_leave_nothing(
    sd_pipe: Any,
    sdxl_pipe: Any,
    make_sd: Any,
    make_llm: Any,
    draw: Draw,
    processors: Any,
    same_objects: Any,
    make_adapter: Any,
) -> None:
    llm = make_llm()
    adapter = make_adapter(sd_pipe, llm)
    objects, base = processors(sd_pipe), draw(sd_pipe)
    wide = make_sd(32)
    cases = [
        (sdxl_pipe, llm, "Stable Diffusion XL .* made for Stable Diffusion 1.x/2.x"),
        (wide, llm, "width 32, the adapter makes 24: use a pipeline like the adapter's own base"),
        (sd_pipe, make_llm(hidden_size=20), "width 20, the adapter was made for 16"),
        (sd_pipe, make_llm(num_blocks=2), "blocks: 2, the adapter was made for 3"),
        (sd_pipe, None, "llm is None"),
    ]
    for pipe, other, message in cases:
        before = processors(pipe)
        with pytest.raises(AdapterMismatchError, match=message):
            attach(pipe, other, adapter)
        assert same_objects(pipe, before)
        assert "encode_prompt" not in vars(pipe)
    for scale in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="scale"):
            attach(sd_pipe, llm, adapter, scale=scale)
    assert same_objects(sd_pipe, objects)
    assert torch.equal(draw(sd_pipe), base)


@pytest.mark.parametrize("thing", [None, "stable-diffusion", torch.nn.Linear(2, 2)])
def test_what_is_no_pipeline_is_refused_by_class(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any, thing: Any
) -> None:
    name = type(thing).__name__
    with pytest.raises(UnsupportedPipelineError, match=f"pipe is a {name}, which LLMDiff cannot control"):
        attach(thing, tiny_llm, make_adapter(sd_pipe, tiny_llm))


def test_an_llm_of_another_name_is_refused_unless_asked_for(
    sd_pipe: Any, make_llm: Any, make_adapter: Any
) -> None:
    adapter = make_adapter(sd_pipe, make_llm())
    with pytest.raises(AdapterMismatchError, match="'other', the adapter was made for 'tiny-llama'"):
        attach(sd_pipe, make_llm(id="other"), adapter)
    assert not is_attached(sd_pipe)
    with pytest.warns(UserWarning, match="'other', the adapter was made for 'tiny-llama'"):
        attach(sd_pipe, make_llm(id="other"), adapter, strict=False)
    detach(sd_pipe)
    # The same model from a folder, or from its repository.
    attach(sd_pipe, make_llm(id="models/Tiny-Llama/"), adapter)


def test_the_base_text_encoder_has_to_be_there_where_it_is_read(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any
) -> None:
    adapter = make_adapter(sd_pipe, tiny_llm)
    sd_pipe.register_modules(text_encoder=None)
    for settings in ({"scale": 0.5}, {"keep_base_text": True}):
        with pytest.raises(ConfigError, match="needs the base's own text encoder"):
            attach(sd_pipe, tiny_llm, adapter, **settings)
    attach(sd_pipe, tiny_llm, adapter)


def test_foreign_processors_leave_nothing_half_attached(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, processors: Any, same_objects: Any
) -> None:
    class Foreign(AttnProcessor2_0):
        pass

    last = list(layers.text_layers(pipe.unet).values())[-1]
    last.set_processor(Foreign())
    before = processors(pipe)
    with pytest.raises(UnsupportedPipelineError, match="Foreign"):
        attach(pipe, tiny_llm, loud_adapter)
    assert same_objects(pipe, before)
    assert "encode_prompt" not in vars(pipe)
