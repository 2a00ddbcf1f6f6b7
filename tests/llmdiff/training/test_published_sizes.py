"""Models built from their published sizes have the published numbers of parameters."""

import pytest
import torch

from llmdiff.training.config import ModelsConfig
from llmdiff.training.meta_models import meta_models
from llmdiff.training.published_sizes import LLMS, PIPELINES

# As the safetensors files on the Hub count them.
LLM_PARAMETERS = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "google/gemma-2-2b-it": 2_614_341_888,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}
PIPELINE_PARAMETERS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "denoiser": 859_520_964,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "safety_checker": 303_981_588,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "denoiser": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": {
        "denoiser": 610_856_096,
        "vae": 83_653_863,
        "text_encoder": 4_762_310_656,
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        "denoiser": 2_028_328_000,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
}


def _count(module):
    return sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize("llm", LLMS)
def test_llms_have_their_published_size(llm):
    found = meta_models(ModelsConfig(llm=llm, base="openmoji"), torch.bfloat16)
    assert found.published == (llm,)
    assert _count(found.llm) == LLM_PARAMETERS[llm]


@pytest.mark.parametrize("base", PIPELINES)
def test_pipelines_have_their_published_sizes(base):
    found = meta_models(ModelsConfig(llm="Qwen/Qwen3-0.6B", base=base), torch.bfloat16)
    counted = {"denoiser": _count(found.denoiser), "vae": _count(found.pipe.vae)}
    counted |= {name: _count(module) for name, module in found.others.items()}
    assert counted == PIPELINE_PARAMETERS[base]
    assert {one.device.type for one in found.denoiser.parameters()} == {"meta"}
