"""Which pipelines are known, and what is read off their denoisers."""

import inspect
from typing import Any

import diffusers
import pytest
from diffusers import DDPMPipeline, UNet2DModel
from tiny.families import BUILDERS

from llmdiff.adapter import FAMILIES, families, layers
from llmdiff.errors import UnsupportedPipelineError


def test_facts_of_stable_diffusion(sd_pipe: Any) -> None:
    family, unet = families.family_of(sd_pipe), families.denoiser_of(sd_pipe)
    assert (family.name, family.has_pooled, unet) == ("sd", False, sd_pipe.unet)
    assert (families.text_width(unet, family), families.pooled_width(unet, family)) == (24, None)
    names = set(layers.text_layers(unet))
    assert names == {name for name, _ in unet.named_modules() if name.endswith(".attn2")}


def test_facts_of_sdxl(sdxl_pipe: Any) -> None:
    family, unet = families.family_of(sdxl_pipe), families.denoiser_of(sdxl_pipe)
    assert (family.name, family.has_pooled) == ("sdxl", True)
    assert (families.text_width(unet, family), families.pooled_width(unet, family)) == (24, 20)
    for name, row in layers.layer_table(unet).items():
        attn = unet.get_submodule(name)
        assert row["query_dim"] == attn.to_q.in_features
        assert row["heads"] == attn.heads


def test_subclasses_belong_to_the_family(sd_pipe: Any) -> None:
    class Mine(type(sd_pipe)):  # type: ignore[misc]
        pass

    assert families.family_of(Mine(**sd_pipe.components, requires_safety_checker=False)).name == "sd"


def test_other_pipelines_are_refused_by_class(sd_pipe: Any) -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(UnsupportedPipelineError, match=r"DDPMPipeline.*StableDiffusionPipeline"):
        families.family_of(DDPMPipeline(unet, sd_pipe.scheduler))


def test_a_denoiser_that_projects_the_text_is_refused(sd_pipe: Any) -> None:
    sd_pipe.unet.register_to_config(encoder_hid_dim_type="text_proj")
    with pytest.raises(UnsupportedPipelineError, match="encoder_hid_dim_type='text_proj'"):
        families.denoiser_of(sd_pipe)


def test_a_pipeline_without_its_denoiser_is_refused(sd_pipe: Any) -> None:
    sd_pipe.register_modules(unet=None)
    with pytest.raises(UnsupportedPipelineError, match=r"pipe\.unet is NoneType"):
        families.denoiser_of(sd_pipe)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda row: row.name)
def test_every_row_names_classes_that_are_there(family: Any) -> None:
    pipe = BUILDERS[family.name]()
    assert families.family_of(pipe) is family
    for name in family.pipelines:
        cls = getattr(diffusers, name)
        arguments = inspect.signature(cls.encode_prompt).parameters
        assert set(family.second_prompts) <= set(arguments)
        assert ("negative_prompt" in arguments) == family.encodes_negative
    result = dict(zip(family.encode_prompt_returns, base_encoding(pipe, family), strict=True))
    denoiser = families.denoiser_of(pipe)
    assert result["positive"].shape[-1] == families.text_width(denoiser, family)
    if family.has_pooled:
        assert result["positive_pooled"].shape == (1, families.pooled_width(denoiser, family))
    if "positive_mask" in result:
        assert result["positive_mask"].shape == result["positive"].shape[:2]
    assert layers.text_layers(denoiser)


def base_encoding(pipe: Any, family: Any) -> Any:
    more = {name: None for name in family.second_prompts if not name.startswith("negative")}
    if family.encodes_negative:
        more["do_classifier_free_guidance"] = True
    return pipe.encode_prompt(prompt="a cat", device="cpu", num_images_per_prompt=1, **more)
