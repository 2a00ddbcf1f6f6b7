"""Which pipelines are known, and what is read off their denoisers."""

from typing import Any

import pytest
from diffusers import DDPMPipeline, UNet2DModel
from tiny.families import BUILDERS

from llmdiff.adapter import FAMILIES, families, layers
from llmdiff.adapter.base_encoder import encode_with_base
from llmdiff.adapter.contract import prompt_contract
from llmdiff.errors import UnsupportedPipelineError


def test_facts_of_stable_diffusion(sd_pipe: Any) -> None:
    family, unet = families.family_of(sd_pipe), families.denoiser_of(sd_pipe)
    assert (family.name, family.pooled_width, unet) == ("sd", None, sd_pipe.unet)
    assert (families.text_width(unet, family), families.pooled_width(unet, family)) == (24, None)
    names = set(layers.text_layers(unet))
    assert names == {name for name, _ in unet.named_modules() if name.endswith(".attn2")}


def test_facts_of_sdxl(sdxl_pipe: Any) -> None:
    family, unet = families.family_of(sdxl_pipe), families.denoiser_of(sdxl_pipe)
    assert family.name == "sdxl"
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
    with pytest.raises(UnsupportedPipelineError, match=r"DDPMPipeline.*it has no encode_prompt"):
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
def test_every_row_says_what_its_pipeline_encodes(family: Any) -> None:
    pipe = BUILDERS[family.name]()
    assert families.family_of(pipe) is family
    denoiser = families.denoiser_of(pipe)
    texts = encode_with_base(pipe, ["a cat", "two dog"])
    assert texts.states.shape[::2] == (2, families.text_width(denoiser, family))
    pooled = families.pooled_width(denoiser, family)
    assert (None if texts.pooled is None else texts.pooled.shape) == (None if pooled is None else (2, pooled))
    if texts.mask is not None:
        assert texts.mask.shape == texts.states.shape[:2]
    assert layers.text_layers(denoiser)
    contract = prompt_contract(type(pipe))
    assert ("negative_prompt" in contract.parameters) == contract.encodes_negative


def test_what_encode_prompt_returns_is_read_from_its_source(sd_pipe: Any) -> None:
    class Own(type(sd_pipe)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, num_images_per_prompt: int = 1) -> Any:
            prompt_embeds, prompt_attention_mask = self.read(prompt)
            return prompt_embeds, prompt_attention_mask

    class Strange(type(sd_pipe)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any) -> Any:
            return self.read(prompt)

    class Wants(type(sd_pipe)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, layout: Any) -> Any:
            prompt_embeds = self.read(prompt, layout)
            return prompt_embeds

    contract = prompt_contract(Own)
    assert contract.returns == ("positive", "positive_mask")
    assert (contract.copies, contract.encodes_negative) == ("num_images_per_prompt", False)
    for kind, message in ((Strange, "its encode_prompt returns"), (Wants, "takes layout")):
        with pytest.raises(UnsupportedPipelineError, match=f"pipe is a {kind.__name__}.*{message}"):
            families.family_of(kind(**sd_pipe.components, requires_safety_checker=False))
