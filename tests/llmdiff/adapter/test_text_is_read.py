"""Whatever pipeline draws while an LLM is attached: its picture depends on the LLM, or it is refused by name."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from tiny.every_pipeline import ACCEPTED, asked, build, pixels
from tiny.families import BUILDERS

from llmdiff.adapter import attach, detach, is_attached
from llmdiff.errors import AttachError, UnsupportedPipelineError

Draw = Callable[..., torch.Tensor]


class DrawsWithAnother(StableDiffusionPipeline):  # type: ignore[misc]
    """Reads the prompt as its parent does, and draws with a network of its own."""

    @torch.no_grad()
    def __call__(self, prompt: Any, **more: Any) -> Any:
        embeds, _ = self.encode_prompt(prompt, torch.device("cpu"), 1, False)
        latents = torch.randn(1, 4, 8, 8) * embeds.mean()
        return self.image_processor.postprocess(self.vae.decode(latents).sample, output_type="np")


class ReadsByItself(StableDiffusionPipeline):  # type: ignore[misc]
    """Encodes prompts in its own way, as pipelines for long prompts do."""

    @torch.no_grad()
    def __call__(self, prompt: Any, **more: Any) -> Any:
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        return super().__call__(prompt_embeds=self.text_encoder(ids)[0], guidance_scale=1.0, **more)


class AsksWithoutText(StableDiffusionPipeline):  # type: ignore[misc]
    """Calls the denoiser's parts without any text."""

    @torch.no_grad()
    def __call__(self, prompt: Any, **more: Any) -> Any:
        self.encode_prompt(prompt, torch.device("cpu"), 1, False)
        return self.unet(torch.randn(1, 4, 8, 8), 10, encoder_hidden_states=None)


class DrawsTheSame(StableDiffusionPipeline):  # type: ignore[misc]
    """Asks the denoiser about the text, and draws something else."""

    @torch.no_grad()
    def __call__(self, prompt: Any, **more: Any) -> Any:
        embeds, _ = self.encode_prompt(prompt, torch.device("cpu"), 1, False)
        self.unet(torch.randn(1, 4, 8, 8), 10, encoder_hidden_states=embeds)
        return (self.vae.decode(torch.ones(1, 4, 8, 8)).sample,)


@pytest.mark.hostile("ignored text")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DrawsWithAnother, "DrawsWithAnother has drawn a picture without asking its UNet2DConditionModel"),
        (AsksWithoutText, "calls it without the text of encode_prompt"),
        (DrawsTheSame, "DrawsTheSame draws the same picture whatever the prompt is"),
    ],
)
def test_a_pipeline_of_ones_own_that_ignores_the_llm_is_refused(
    kind: Any, message: str, tiny_llm: Any, make_adapter: Any
) -> None:
    pipe = kind(**BUILDERS["sd"]().components)
    attributes = set(vars(pipe))
    with pytest.raises(AttachError, match=message):
        attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    assert not is_attached(pipe)
    assert set(vars(pipe)) == attributes


@pytest.mark.hostile("ignored text")
def test_embeddings_of_ones_own_draw_as_the_base_on_purpose(
    tiny_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    pipe = ReadsByItself(**BUILDERS["sd"]().components)
    pipe.set_progress_bar_config(disable=True)
    base = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt")
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    again = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt")
    assert torch.equal(base.images, again.images)


def test_pictures_decoded_by_hand_are_nobodys_business(tiny_llm: Any, make_adapter: Any) -> None:
    pipe = BUILDERS["sd"]()
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    pipe.encode_prompt("a cat", torch.device("cpu"), 1, False)
    with torch.no_grad():
        assert pipe.vae.decode(torch.randn(1, 4, 8, 8)).sample.isfinite().all()
    handles = len(pipe.vae.decoder._forward_hooks)
    detach(pipe)
    assert len(pipe.vae.decoder._forward_hooks) == handles - 1


@pytest.mark.hostile("ignored text")
@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_a_refiner_with_a_score_for_aesthetics(
    kind: str, tiny_llm: Any, make_llm: Any, make_adapter: Any, draw: Draw
) -> None:
    base = BUILDERS["sdxl"]()
    # Its text states are those of the second text encoder alone.
    unet = diffusers.UNet2DConditionModel.from_config(
        {**base.unet.config, "projection_class_embeddings_input_dim": 20 + 5 * 8, "cross_attention_dim": 12}
    )
    made = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")
    # As the refiner comes: with the second text encoder alone.
    parts = {**base.components, "unet": unet.eval(), "text_encoder": None, "tokenizer": None}
    pipe = made(**parts, requires_aesthetics_score=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    adapter = make_adapter(pipe, tiny_llm)
    assert adapter.config.pooled_width == 20
    given: dict[str, Any] = {"image": torch.rand(1, 3, 32, 32), "strength": 0.8, "steps": 4}
    if kind == "Inpaint":
        given |= {"mask_image": torch.ones(1, 1, 32, 32), "height": 32, "width": 32}
    attach(pipe, tiny_llm, adapter)
    torch.manual_seed(3)
    first = draw(pipe, "a cat", **given)
    torch.manual_seed(3)
    assert (draw(pipe, "two dog", **given) - first).abs().max() > 1e-4


LISTED = {name for names in ACCEPTED.values() for name in names}
FOREIGN = [name for name in dir(diffusers) if name.endswith("Pipeline") and name not in LISTED]
# Those that come nearest to a family; all the others take minutes to import and try.
NEAREST = [
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "HunyuanDiTPipeline",
    "ZImageOmniPipeline",
    "IFPipeline",
    "HiDreamImagePipeline",
]


def check_foreign(name: str, llm: Any, make_adapter: Any) -> None:
    made = getattr(diffusers, name)
    if not (inspect.isclass(made) and issubclass(made, DiffusionPipeline)):
        return
    with pytest.raises(
        UnsupportedPipelineError, match=f"pipe is a {made.__name__}, which LLMDiff cannot control"
    ):
        attach(made.__new__(made), llm, None, scale=1.0)  # type: ignore[arg-type]
    for family in BUILDERS:
        try:
            pipe = build(name, family)
            torch.manual_seed(3)
            pixels(pipe(**asked(pipe, prompt="a cat")))
        except Exception:  # other parts, or its own checks: it draws nothing
            continue
        try:
            adapter = make_adapter(pipe, llm)
            attach(pipe, llm, adapter)
        except UnsupportedPipelineError as error:
            assert made.__name__ in str(error) or "processor" in str(error)  # noqa: PT017
            continue
        torch.manual_seed(3)
        ours = pixels(pipe(**asked(pipe, prompt="a cat")))
        torch.manual_seed(3)
        other = pixels(pipe(**asked(pipe, prompt="two dog")))
        assert not torch.equal(ours, other), f"{name} draws whatever the LLM says"


@pytest.mark.hostile("ignored text")
@pytest.mark.parametrize("name", NEAREST)
def test_a_near_relative_is_refused_and_never_draws_the_base(
    name: str, tiny_llm: Any, make_adapter: Any
) -> None:
    check_foreign(name, tiny_llm, make_adapter)


@pytest.mark.soak
@pytest.mark.hostile("ignored text")
@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in NEAREST])
def test_every_other_pipeline_of_diffusers(name: str, tiny_llm: Any, make_adapter: Any) -> None:
    check_foreign(name, tiny_llm, make_adapter)
