"""The text step in diffusers' modular pipelines: the attached pipeline's pictures, and guiders that work."""

from typing import Any

import pytest
import torch
from diffusers import guiders
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines import FluxAutoBlocks, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.stable_diffusion_3 import StableDiffusion3AutoBlocks
from tiny.families import BUILDERS
from torch import Tensor

from llmdiff.adapter import LLMDiffAdapter, attach, detach, install
from llmdiff.adapter.modular import LLMTextStep
from llmdiff.errors import AdapterMismatchError, AttachError, PromptError, UnsupportedPipelineError

from .conftest import build_adapter

BLOCKS: dict[str, Any] = {
    "sdxl": StableDiffusionXLAutoBlocks,
    "sd3": StableDiffusion3AutoBlocks,
    "flux": FluxAutoBlocks,
}
SDXL_BLOCKS = "down_blocks.1.attentions.0.transformer_blocks"


def skip_layer(config: LayerSkipConfig) -> Any:
    return guiders.SkipLayerGuidance(
        guidance_scale=4.0,
        skip_layer_guidance_scale=2.0,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=config,
    )


GUIDERS: dict[str, Any] = {
    "none": None,
    "cfg": guiders.ClassifierFreeGuidance(guidance_scale=4.0),
    "apg": guiders.AdaptiveProjectedGuidance(
        guidance_scale=4.0, adaptive_projected_guidance_rescale=0.5, eta=0.0
    ),
    "cfg-zero": guiders.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=0),
    # A whole block of SDXL, its self-attention, and its feed-forward. diffusers skips no attention of SD3, with or
    # without an LLM: it knows neither its processor nor the order of its block's outputs.
    "slg": skip_layer(LayerSkipConfig(indices=[0], fqn=SDXL_BLOCKS)),
    "slg-attention": skip_layer(LayerSkipConfig(indices=[0], fqn=SDXL_BLOCKS, skip_ff=False)),
    "slg-ff": skip_layer(LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=False)),
    "pag": guiders.PerturbedAttentionGuidance(
        guidance_scale=4.0,
        perturbed_guidance_scale=2.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=LayerSkipConfig(
            indices=[0], fqn=SDXL_BLOCKS, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
    ),
}


def modular(name: str, pipe: Any, adapter: LLMDiffAdapter, llm: Any, guider: Any = None, **more: Any) -> Any:
    blocks = BLOCKS[name]()
    blocks.sub_blocks["text_encoder"] = LLMTextStep(llm, adapter, **more)
    made = blocks.init_pipeline()
    parts = {
        key: getattr(pipe, key) for key in ("unet", "transformer", "vae", "scheduler") if hasattr(pipe, key)
    }
    if guider is not None:
        parts["guider"] = guider
    made.update_components(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def draw(made: Any, prompt: Any, **more: Any) -> Tensor:
    drawn = made(
        prompt=prompt,
        num_inference_steps=3,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(5),
        output="images",
        output_type="np",
        **more,
    )
    return torch.from_numpy(drawn)


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


@pytest.fixture(params=list(BLOCKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(name: str) -> Any:
    return BUILDERS[name]()


@pytest.fixture
def adapter(pipe: Any, tiny_llm: Any) -> LLMDiffAdapter:
    return build_adapter(pipe, tiny_llm)


def test_the_picture_is_that_of_the_attached_pipeline(
    name: str, pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any
) -> None:
    prompts = ["a red cat", "a dog on the left"]
    negative = {} if name == "flux" else {"negative_prompt": "blue"}
    made = modular(name, pipe, adapter, tiny_llm, None if name == "flux" else GUIDERS["cfg"])
    with install(denoiser(pipe), adapter, strict=True):
        ours = draw(made, prompts, **negative)
        other = draw(made, prompts[::-1], **negative)
    attach(pipe, tiny_llm, adapter)
    expected = pipe(
        prompts,
        num_inference_steps=3,
        height=16,
        width=16,
        guidance_scale=3.5 if name == "flux" else 4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **negative,
    ).images
    detach(pipe)
    assert (ours - torch.from_numpy(expected)).abs().max() < 1e-5
    assert (other - ours).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sdxl", kind) for kind in ("cfg", "apg", "slg", "slg-attention", "pag")]
    + [("sd3", kind) for kind in ("cfg", "apg", "cfg-zero", "slg-ff")],
)
def test_guiders_act_on_the_llms_prompts(
    name: str, kind: str, pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any
) -> None:
    unguided = guiders.ClassifierFreeGuidance(guidance_scale=1.0)
    with install(denoiser(pipe), adapter, strict=True):
        plain = draw(modular(name, pipe, adapter, tiny_llm, unguided), "a red cat")
        made = modular(name, pipe, adapter, tiny_llm, GUIDERS[kind])
        guided = draw(made, "a red cat", negative_prompt="a dog")
        assert torch.equal(draw(made, "a red cat", negative_prompt="a dog"), guided)
        other = draw(made, "a red cat", negative_prompt="the blue car")
        cfg = draw(
            modular(name, pipe, adapter, tiny_llm, GUIDERS["cfg"]), "a red cat", negative_prompt="a dog"
        )
    assert bool(torch.isfinite(guided).all())
    assert (guided - plain).abs().max() > 1e-3
    assert (guided - other).abs().max() > 1e-4
    assert kind == "cfg" or (guided - cfg).abs().max() > 1e-4


def test_several_pictures_of_a_prompt(name: str, pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any) -> None:
    made = modular(name, pipe, adapter, tiny_llm)
    with install(denoiser(pipe), adapter, strict=True):
        assert draw(made, "a red cat", num_images_per_prompt=2).shape[0] == 2


@pytest.mark.parametrize("name", ["sdxl"])
def test_weights_of_words_reach_the_llm(pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any) -> None:
    made = modular("sdxl", pipe, adapter, tiny_llm, weighted=True)
    with install(pipe.unet, adapter, strict=True):
        assert (draw(made, "a (red:2.0) cat") - draw(made, "a red cat")).abs().max() > 1e-4
        assert torch.equal(draw(made, "a (red:1.0) cat"), draw(made, "a red cat"))


def test_a_denoiser_without_the_adapter_is_refused(
    name: str, pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any
) -> None:
    made = modular(name, pipe, adapter, tiny_llm)
    with pytest.raises(AttachError, match="does not carry the adapter"):
        draw(made, "a cat")
    with install(denoiser(pipe), adapter, scale=0.5), pytest.raises(AttachError, match=r"scale=0\.5"):
        draw(made, "a cat")
    with (
        install(denoiser(pipe), build_adapter(pipe, tiny_llm)),
        pytest.raises(AttachError, match="does not carry the adapter"),
    ):
        draw(made, "a cat")


def test_prompts_that_cannot_be_encoded_are_refused(
    name: str, pipe: Any, adapter: LLMDiffAdapter, tiny_llm: Any
) -> None:
    made = modular(name, pipe, adapter, tiny_llm)
    with install(denoiser(pipe), adapter, strict=True):
        with pytest.raises(PromptError, match="second text encoder"):
            draw(made, "a cat", prompt_2="a dog")
        with pytest.raises(PromptError, match="expected a text or a list of texts"):
            draw(made, None)
        if name != "flux":
            with pytest.raises(PromptError, match="is blank"):
                draw(made, " ")


def test_another_llm_or_family_is_refused(make_llm: Any, tiny_llm: Any) -> None:
    adapter = build_adapter(BUILDERS["sdxl"](), tiny_llm)
    with pytest.raises(AdapterMismatchError, match="strict=False"):
        LLMTextStep(make_llm(id="other"), adapter)
    with pytest.raises(UnsupportedPipelineError, match="no modular pipeline"):
        LLMTextStep(tiny_llm, build_adapter(BUILDERS["sd"](), tiny_llm))
