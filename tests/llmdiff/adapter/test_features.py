"""diffusers' own features on an attached pipeline: each works, or is refused by name."""

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from docs.features import OUTCOMES
from peft import LoraConfig
from tiny.families import BUILDERS, drawn
from tiny.pipelines import build_llm
from torch._dynamo.testing import CompileCounter

from llmdiff.adapter import LLMDiffAdapter, attach, detach, families
from llmdiff.errors import AttachError

from .conftest import build_adapter

Draw = Callable[..., torch.Tensor]


def broadcast(pipe: Any) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe.current_timestep or 500
    )


@pytest.fixture
def flux(tiny_llm: Any) -> Any:
    return BUILDERS["flux"]()


@pytest.mark.hostile("undoing")
@pytest.mark.parametrize("config", [lambda pipe: FirstBlockCacheConfig(threshold=0.1), broadcast])
def test_a_cache_from_before_attaching_that_is_disabled_while_attached(
    flux: Any, tiny_llm: Any, make_adapter: Any, draw: Draw, config: Any
) -> None:
    base = draw(flux)
    adapter = make_adapter(flux, tiny_llm)
    attach(flux, tiny_llm, adapter)
    ours = draw(flux)
    detach(flux)
    flux.transformer.enable_cache(config(flux))
    attach(flux, tiny_llm, adapter)
    flux.transformer.disable_cache()
    try:
        assert torch.equal(draw(flux), ours)
    except AttachError as error:
        assert "detach, then attach again" in str(error)  # noqa: PT017
    detach(flux)
    assert torch.equal(draw(flux), base)
    attach(flux, tiny_llm, adapter)
    assert torch.equal(draw(flux), ours)
    detach(flux)


@pytest.mark.parametrize("config", [lambda pipe: FirstBlockCacheConfig(threshold=0.1), broadcast])
def test_a_cache_that_is_enabled_while_attached(
    flux: Any, tiny_llm: Any, make_adapter: Any, draw: Draw, config: Any
) -> None:
    base = draw(flux)
    attach(flux, tiny_llm, make_adapter(flux, tiny_llm))
    ours = draw(flux)
    flux.transformer.enable_cache(config(flux))
    assert (draw(flux) - base).abs().max() > 1e-4
    flux.transformer.disable_cache()
    assert torch.equal(draw(flux), ours)
    flux.transformer.enable_cache(config(flux))
    detach(flux)
    flux.transformer.disable_cache()
    assert torch.equal(draw(flux), base)


@pytest.mark.hostile("undoing")
def test_a_cache_does_not_mix_up_two_predictions(tiny_llm: Any, make_adapter: Any, draw: Draw) -> None:
    pipe = BUILDERS["qwen-image"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter, scale=0.5)
    with pytest.raises(AttachError, match=r"a cache is enabled, and at scale 0\.5"):
        draw(pipe)
    detach(pipe)
    attach(pipe, tiny_llm, adapter)
    assert torch.isfinite(draw(pipe)).all()


@pytest.mark.hostile("undoing")
def test_a_denoiser_that_was_replaced_while_attached(
    pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    base = draw(pipe)
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    first = pipe.unet
    pipe.unet = copy.deepcopy(type(first)(**{k: v for k, v in first.config.items() if k[0] != "_"})).eval()
    with pytest.raises(AttachError, match=r"UNet2DConditionModel .* was replaced while the LLM was attached"):
        draw(pipe)
    detach(pipe)
    pipe.unet = first
    assert torch.equal(draw(pipe), base)


@pytest.mark.hostile("undoing")
def test_an_attached_pipeline_is_copied_and_not_pickled(attached: Any, draw: Draw) -> None:
    with pytest.raises(AttachError, match="cannot be pickled: detach first"):
        pickle.dumps(attached.unet)
    assert torch.equal(draw(copy.deepcopy(attached)), draw(attached))
    detach(attached)
    assert pickle.dumps(attached.unet)


def test_the_attention_backend_reaches_both_branches(
    tiny_llm: Any, make_adapter: Any, draw: Draw, monkeypatch: Any
) -> None:
    pipe = BUILDERS["wan"]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    expected = draw(pipe)
    pipe.transformer.set_attention_backend("_native_math")
    seen: list[Any] = []
    from llmdiff.adapter import processors

    true = processors.dispatch_attention_fn
    monkeypatch.setattr(
        processors,
        "dispatch_attention_fn",
        lambda *args, **more: (seen.append(more["backend"]), true(*args, **more))[1],
    )
    assert torch.allclose(draw(pipe), expected, atol=1e-4)
    assert seen
    assert {str(getattr(one, "value", one)) for one in seen} == {"_native_math"}


@pytest.mark.hostile("ignored text")
def test_an_attention_backend_without_masks_is_named_where_one_is_needed(
    flux: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    class Unmasked(type(flux.transformer.transformer_blocks[0].attn.processor)):  # type: ignore[misc]
        """Attends without torch's attention, as kernels of other libraries do."""

        def __call__(
            self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *args: Any
        ) -> Any:
            return hidden_states, encoder_hidden_states

    attach(flux, tiny_llm, make_adapter(flux, tiny_llm))
    alone = draw(flux)
    flux.transformer.transformer_blocks[0].attn.set_processor(Unmasked())
    assert torch.isfinite(draw(flux)).all()  # one prompt has no padding to leave out
    with pytest.raises(
        Exception, match=r"Unmasked and the attention backend native, which cannot leave padding out"
    ):
        draw(flux, ["a cat", "a photo of the red car"])
    assert torch.isfinite(alone).all()


@pytest.mark.hostile("ignored text")
def test_a_textual_inversion_acts_with_the_base_text_or_warns(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    sd_pipe.tokenizer.add_tokens("<thing>")
    sd_pipe.text_encoder.resize_token_embeddings(len(sd_pipe.tokenizer))
    adapter = make_adapter(sd_pipe, tiny_llm)
    attach(sd_pipe, tiny_llm, adapter)
    with pytest.warns(UserWarning, match="<thing> of a textual inversion has no effect"):
        draw(sd_pipe, "a <thing>")
    detach(sd_pipe)
    attach(sd_pipe, tiny_llm, adapter, keep_base_text=True)
    before = draw(sd_pipe, "a <thing>")
    with torch.no_grad():
        sd_pipe.text_encoder.get_input_embeddings().weight[-1].mul_(-3)
    assert (draw(sd_pipe, "a <thing>") - before).abs().max() > 1e-5


@pytest.mark.hostile("ignored text")
def test_embeddings_of_the_base_warn_that_the_base_draws(
    sd_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    embeds, negative = sd_pipe.encode_prompt("a cat", "cpu", 1, True)
    base = draw(sd_pipe)
    attach(sd_pipe, tiny_llm, make_adapter(sd_pipe, tiny_llm))
    with pytest.warns(UserWarning, match="the base draws this picture without the LLM"):
        picture = draw(sd_pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert torch.equal(picture, base)


def test_a_refiner_mixes_with_its_second_text_encoder(
    sdxl_pipe: Any, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    parts = {**sdxl_pipe.components, "text_encoder": None, "tokenizer": None}
    unet: Any = sdxl_pipe.unet
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    parts["unet"] = type(unet)(**{**config, "cross_attention_dim": 12}).eval()
    pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    base = draw(pipe)
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm), scale=0.5)
    assert (draw(pipe) - base).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "pixart", "sana", "sd3", "flux"])
def test_prompts_of_other_lengths_compile_nothing_again(
    family: str, tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    torch._dynamo.reset()
    pipe = BUILDERS[family]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    prompts = ["a cat", "two blue dog on the left of a big green car", "a red apple above"]
    expected = [draw(pipe, prompt) for prompt in prompts]
    counter = CompileCounter()
    families.denoiser_of(pipe).compile(backend=counter)
    found = [draw(pipe, prompts[0])]
    frames = counter.frame_count
    assert frames > 0
    found += [draw(pipe, prompt) for prompt in prompts[1:]]
    assert counter.frame_count == frames
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-3


def as_one_graph(pipe: Any) -> None:
    drawn(pipe)  # Z-Image makes the tables of its positions in its first call, outside any graph
    families.denoiser_of(pipe).compile(backend="eager", fullgraph=True)


# Features of a denoiser: what turns each on, and how far the picture may be from the one without.
FEATURES: dict[str, tuple[Callable[[Any], None], float]] = {
    "attention backend": (
        lambda pipe: families.denoiser_of(pipe).set_attention_backend("_native_math"),
        1e-3,
    ),
    "bfloat16": (lambda pipe: pipe.to(torch.bfloat16), 0.5),
    # A new LoRA is zero.
    "LoRA in the denoiser": (
        lambda pipe: families.denoiser_of(pipe).add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"])
        ),
        1e-3,
    ),
    "VAE slicing": (lambda pipe: pipe.vae.enable_slicing(), 1e-3),
    "fused projections": (lambda pipe: families.denoiser_of(pipe).fuse_qkv_projections(), 1e-3),
    "layerwise casting": (
        lambda pipe: families.denoiser_of(pipe).enable_layerwise_casting(
            storage_dtype=torch.bfloat16, compute_dtype=torch.float32
        ),
        0.5,
    ),
    "group offloading": (
        lambda pipe: families.denoiser_of(pipe).enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="leaf_level"
        ),
        1e-3,
    ),
    "`torch.compile`": (lambda pipe: families.denoiser_of(pipe).compile(backend="eager"), 1e-3),
    "`torch.compile(fullgraph=True)`": (as_one_graph, 1e-3),
}


@cache
def drawn_without(family: str, draw: Draw) -> tuple[Any, LLMDiffAdapter, torch.Tensor, torch.Tensor]:
    """An LLM, an adapter, and the pictures of the base and of the attached pipeline, without any feature."""
    pipe, llm = BUILDERS[family](), build_llm()
    adapter = build_adapter(pipe, llm)
    base = draw(pipe)
    attach(pipe, llm, adapter)
    return llm, adapter, base, draw(pipe)


def outcome(family: str, feature: str, draw: Draw) -> str:
    """What a feature does on an attached pipeline; "-" if diffusers does not have it for this denoiser."""
    turn_on, bound = FEATURES[feature]
    torch._dynamo.reset()
    plain = BUILDERS[family]()
    try:
        turn_on(plain)
        draw(plain)
    except Exception:  # whatever is attached
        return "-"
    llm, adapter, base, before = drawn_without(family, draw)
    pipe = BUILDERS[family]()
    attach(pipe, llm, adapter)
    turn_on(pipe)
    after = draw(pipe)
    assert (after - before).abs().max() < bound
    assert not torch.equal(after, base)
    assert not torch.equal(draw(pipe, "two dog"), after)
    return "yes"


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("family", list(BUILDERS))
def test_a_feature_of_the_denoiser(family: str, feature: str) -> None:
    assert outcome(family, feature, drawn) == OUTCOMES[feature][family]
