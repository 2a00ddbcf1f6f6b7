"""Every family's pipelines draw pictures by the same arguments, videos as one frame."""

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
