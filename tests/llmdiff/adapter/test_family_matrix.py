"""Every family of the table against everything that has to hold for each of them."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS, DRAW_OPTIONS

from llmdiff.adapter import FAMILIES, LLMDiffAdapter, attach, detach, families, install, is_attached, layers
from llmdiff.errors import ConfigError
from llmdiff.types import TextEncoding

Draw = Callable[..., torch.Tensor]
COPIES = ("num_images_per_prompt", "num_videos_per_prompt")
LONG = "a photo of the red car on the left and two green apple above the dog"


@pytest.fixture(params=[family.name for family in FAMILIES])
def pipe(request: pytest.FixtureRequest) -> Any:
    return BUILDERS[request.param]()


@pytest.fixture
def adapter(pipe: Any, tiny_llm: Any, make_adapter: Any) -> LLMDiffAdapter:
    made: LLMDiffAdapter = make_adapter(pipe, tiny_llm)
    return made


@pytest.fixture
def attached(pipe: Any, tiny_llm: Any, adapter: LLMDiffAdapter) -> Any:
    attach(pipe, tiny_llm, adapter)
    return pipe


def guided(pipe: Any, negative: Any) -> dict[str, Any]:
    """Arguments for guidance against this negative prompt."""
    by = families.family_of(pipe).guided_by
    return {"negative_prompt": negative, **({} if by == "guider" else {by: 4.0})}


def test_attach_draw_detach_restores_objects_and_bits(
    pipe: Any, tiny_llm: Any, adapter: LLMDiffAdapter, draw: Draw, processors: Any, same_objects: Any
) -> None:
    objects, base, attributes = processors(pipe), draw(pipe), set(vars(pipe))
    bits = {name: value.clone() for name, value in families.denoiser_of(pipe).state_dict().items()}
    attach(pipe, tiny_llm, adapter)
    ours = draw(pipe)
    assert torch.isfinite(ours).all()
    assert (ours - base).abs().max() > 1e-3
    assert set(families.denoiser_of(pipe).state_dict()) == set(bits)
    detach(pipe)
    assert same_objects(pipe, objects)
    assert set(vars(pipe)) == attributes
    assert not is_attached(pipe)
    after = families.denoiser_of(pipe).state_dict()
    assert all(torch.equal(after[name], bits[name]) for name in bits)
    assert torch.equal(draw(pipe), base)


def test_a_saved_adapter_draws_the_same(
    attached: Any, tiny_llm: Any, adapter: LLMDiffAdapter, draw: Draw, tmp_path: Path
) -> None:
    ours = draw(attached)
    detach(attached)
    adapter.save_pretrained(tmp_path)
    loaded = LLMDiffAdapter.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in adapter.state_dict().items())
    attach(attached, tiny_llm, loaded)
    # Not bit for bit: weights at another address may be added up in another order.
    assert (draw(attached) - ours).abs().max() < 1e-5


def test_guidance_with_prompts_of_different_lengths(attached: Any, draw: Draw) -> None:
    if "negative_prompt" not in inspect.signature(type(attached).__call__).parameters:
        # Sana-Sprint is guided without one, FLUX.2 klein against "" only: the LLM reads it.
        assert families.family_of(attached).name in ("sana-sprint", "flux2")
        assert (draw(attached, guidance_scale=1.0) - draw(attached, guidance_scale=6.0)).abs().max() > 1e-5
        return
    steered = draw(attached, "a cat", **guided(attached, LONG))
    other = draw(attached, "a cat", **guided(attached, "green"))
    assert (steered - other).abs().max() > 1e-5
    both = draw(attached, ["a cat", "two dog in the car"], **guided(attached, [LONG, "green"]))
    assert (both[0] - steered[0]).abs().max() < 1e-3


def test_several_images_per_prompt(attached: Any, draw: Draw) -> None:
    single = [draw(attached, prompt) for prompt in ("a cat", LONG)]
    wanted = inspect.signature(type(attached).__call__).parameters
    four = draw(attached, ["a cat", LONG], **{name: 2 for name in COPIES if name in wanted})
    assert four.shape[0] == 4
    for index, image in enumerate(four):
        assert (image - single[index // 2][0]).abs().max() < 1e-3


def test_padding_never_changes_a_picture(attached: Any, draw: Draw) -> None:
    together = draw(attached, ["a cat", LONG])
    assert (together[0] - draw(attached, "a cat")[0]).abs().max() < 1e-3
    assert (together[1] - draw(attached, LONG)[0]).abs().max() < 1e-3
    assert (together[1] - together[0]).abs().max() > 1e-5


@pytest.mark.parametrize("keep_base_text", [False, True])
def test_the_scale_sweeps_from_the_base_to_the_llm(
    pipe: Any, tiny_llm: Any, adapter: LLMDiffAdapter, draw: Draw, keep_base_text: bool
) -> None:
    if keep_base_text and families.family_of(pipe).mixing == "prediction":
        with pytest.raises(ConfigError, match="keep_base_text is True, but"):
            attach(pipe, tiny_llm, adapter, keep_base_text=True)
        assert not is_attached(pipe)
        return
    base = draw(pipe)
    images = {}
    for scale in (0.0, 1e-5, 0.5, 1 - 1e-5, 1.0):
        attach(pipe, tiny_llm, adapter, scale=scale, keep_base_text=keep_base_text)
        images[scale] = draw(pipe)
        detach(pipe)
    assert torch.equal(images[0.0], base)
    assert (images[1e-5] - base).abs().max() < 1e-3
    assert (images[1 - 1e-5] - images[1.0]).abs().max() < 1e-3
    assert (images[0.5] - images[0.0]).abs().max() > 1e-4
    assert (images[0.5] - images[1.0]).abs().max() > 1e-4


def test_kept_base_text_is_read_and_never_padded_into_a_picture(
    pipe: Any, tiny_llm: Any, adapter: LLMDiffAdapter, draw: Draw
) -> None:
    # Latte's text encoder cuts all prompts of a batch to the length of the first.
    base = (draw(pipe, ["a cat", LONG])[0] - draw(pipe)[0]).abs().max()
    assert bool(base < 2e-3) == (families.family_of(pipe).name != "latte")
    attach(pipe, tiny_llm, adapter)
    without = draw(pipe)
    detach(pipe)
    mixed = families.family_of(pipe).mixing == "prediction"
    attach(pipe, tiny_llm, adapter, **({"scale": 0.5} if mixed else {"keep_base_text": True}))
    alone = draw(pipe)
    assert (alone - without).abs().max() > 1e-5
    assert (draw(pipe, ["a cat", LONG])[0] - alone[0]).abs().max() < max(2e-3, float(base))


@pytest.mark.parametrize("name", [row.name for row in FAMILIES if row.mixing == "prediction"])
def test_a_mixed_prediction_is_the_mean_of_both(
    name: str, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    pipe = BUILDERS[name]()
    adapter = make_adapter(pipe, tiny_llm)
    # The LLM's text is then longer than the base's, and for the short prompt shorter.
    options = {"max_sequence_length": 6} if name == "chroma" else {}
    for prompt in ("a cat", LONG):
        predicted = {}
        for scale in (0.0, 0.25, 1.0):
            attach(pipe, tiny_llm, adapter, scale=scale)
            outputs: list[Any] = []
            handle = families.denoiser_of(pipe).register_forward_hook(
                lambda module, args, output, outputs=outputs: outputs.append(output[0])
            )
            draw(pipe, prompt, **options)
            handle.remove()
            detach(pipe)
            predicted[scale] = outputs[0][0] if isinstance(outputs[0], list) else outputs[0]
        expected = 0.75 * predicted[0.0] + 0.25 * predicted[1.0]
        assert (predicted[0.0] - predicted[1.0]).abs().max() > 1e-4
        assert torch.allclose(predicted[0.25], expected, atol=1e-6)


def test_gradients_reach_the_adapter_and_nothing_else(
    pipe: Any, tiny_llm: Any, adapter: LLMDiffAdapter, processors: Any, same_objects: Any
) -> None:
    denoiser: Any = families.denoiser_of(pipe).requires_grad_(False)
    updates = tiny_llm.block_updates(["a red cat", "two dog"], lone="token+bos")
    assert adapter.context is not None
    noise = torch.Generator().manual_seed(0)
    encoding = TextEncoding(
        states=adapter.context.sum(updates, generator=noise), token_mask=updates.token_mask
    )
    states, pooled = adapter.condition(encoding)
    before = processors(pipe)
    with install(denoiser, adapter):
        predict(pipe, states, pooled, updates.token_mask).square().mean().backward()
    assert same_objects(pipe, before)
    silent = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    frozen = [*denoiser.parameters(), *pipe.text_encoder.parameters(), *tiny_llm.model.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def predict(pipe: Any, states: Any, pooled: Any, mask: Any) -> torch.Tensor:
    """A call of the denoiser with these text states, and otherwise the arguments that its pipeline gives it."""
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    seen: list[Any] = []
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    options = DRAW_OPTIONS.get(type(pipe).__name__, {})
    pipe(prompt="a cat", num_inference_steps=2, output_type="latent", **options)
    handle.remove()
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    given = {**dict(zip(names, seen[0][0], strict=False)), **seen[0][1]}
    count = len(given[names[0]])
    states = states[:count]
    given[family.text_argument] = list(states) if family.ragged else states
    for name in ("encoder_hidden_states_mask", "encoder_attention_mask"):
        if given.get(name) is not None:
            given[name] = mask[:count].long()
    if pooled is not None and "added_cond_kwargs" in given:
        given["added_cond_kwargs"] = {**given["added_cond_kwargs"], "text_embeds": pooled[:count]}
    elif pooled is not None:
        given["pooled_projections"] = pooled[:count]
    if given.get("txt_ids") is not None:
        given["txt_ids"] = given["txt_ids"][..., : states.shape[1], :]
    if given.get("attention_mask") is not None:
        given["attention_mask"] = None
    result: Any = denoiser(**given)[0]
    return torch.stack(result) if isinstance(result, list) else result


def test_deep_copies_are_attached_on_their_own(attached: Any, draw: Draw) -> None:
    ours = draw(attached)
    twin = copy.deepcopy(attached)
    detach(attached)
    base = draw(attached)
    assert torch.equal(draw(twin), ours)
    detach(twin)
    assert torch.equal(draw(twin), base)


def test_a_pipeline_that_only_shares_the_denoiser_does_not_draw_the_base(
    attached: Any, tiny_llm: Any, adapter: LLMDiffAdapter, draw: Draw
) -> None:
    ours = draw(attached)
    other = type(attached)(**attached.components)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(Exception, match="this pipeline is not"):
        draw(other)
    attach(other, tiny_llm, adapter)
    assert torch.equal(draw(other), ours)
    detach(attached)
    assert torch.equal(draw(other), ours)
    detach(other)
    assert layers.attention_layers(families.denoiser_of(other))
