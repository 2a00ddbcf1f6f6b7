"""Every family's pipelines draw pictures by the same arguments, videos as one frame."""

import warnings
from typing import Any

import pytest
import torch
from tiny.families import BUILDERS

from llmdiff.adapter.limits import side_multiple_px
from llmdiff.drawing.any_pipeline import pictures


@pytest.mark.parametrize("family", BUILDERS)
def test_pictures_of_the_asked_size_are_drawn(family: str) -> None:
    pipe: Any = BUILDERS[family]()
    side = 2 * side_multiple_px(pipe)
    asked = {"negative_prompt": None, "num_inference_steps": 2, "height": side, "width": side}
    asked |= {"guidance_scale": 1.0, "generator": [torch.Generator().manual_seed(seed) for seed in (1, 2)]}
    # Bins of sizes are for models of real sizes.
    asked |= {"use_resolution_binning": False, "complex_human_instruction": None, "max_sequence_length": 32}
    if family == "hunyuan-image":
        with pytest.warns(UserWarning, match="guidance_scale has no effect: HunyuanImagePipeline takes none"):
            drawn = pictures(pipe, ["a cat", "two dog"], **asked)
    else:
        drawn = pictures(pipe, ["a cat", "two dog"], **asked)
    assert [picture.size for picture in drawn] == [(side, side)] * 2


def test_the_guidance_scale_reaches_pipelines_that_name_it_otherwise() -> None:
    pipe: Any = BUILDERS["qwen-image"]()
    side = 2 * side_multiple_px(pipe)

    def latents(**asked: Any) -> torch.Tensor:
        """The tiny model's pictures differ by less than a step of 8 bits."""
        steps: list[torch.Tensor] = []

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps.append(tensors["latents"])
            return tensors

        asked |= {"num_inference_steps": 2, "height": side, "width": side, "max_sequence_length": 64}
        generator = torch.Generator().manual_seed(1)
        pictures(pipe, ["a cat"], generator=generator, callback_on_step_end=after_step, **asked)
        return steps[-1]

    by_hand = latents(true_cfg_scale=6.0, negative_prompt=[""])
    assert torch.equal(latents(guidance_scale=6.0), by_hand)
    assert not torch.equal(latents(guidance_scale=3.0), by_hand)
    assert torch.equal(latents(guidance_scale=1.0), latents())


def test_a_scale_that_a_distilled_denoiser_does_not_read_is_said() -> None:
    pipe: Any = BUILDERS["flux"]()
    side = 2 * side_multiple_px(pipe)
    asked = {"num_inference_steps": 1, "height": side, "width": side, "max_sequence_length": 32}
    pipe.transformer.register_to_config(guidance_embeds=False)
    with pytest.warns(UserWarning, match="guidance_scale has no effect: the denoiser of this FluxPipeline"):
        pictures(pipe, ["a cat"], guidance_scale=3.0, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures(pipe, ["a cat"], guidance_scale=1.0, **asked)
