"""Every pipeline that a row of the table names draws under LLM control, and gives its base back."""

from typing import Any

import diffusers
import pytest
import torch
from tiny.families import BUILDERS, DRAW_OPTIONS

from llmdiff.adapter import FAMILIES, attach, detach

# ControlNets need a second network: see test_companions.py.
CASES = [(family.name, name) for family in FAMILIES for name in family.pipelines if "ControlNet" not in name]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[name for _, name in CASES])
def test_the_pipeline_draws(family: str, name: str, tiny_llm: Any, make_adapter: Any, draw: Any) -> None:
    pipe = BUILDERS[family]()
    given = dict(DRAW_OPTIONS.get(type(pipe).__name__, {}))
    other = getattr(diffusers, name).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    if "Img2Img" in name or "Inpaint" in name:
        given |= {"image": torch.rand(1, 3, 32, 32), "strength": 0.8, "steps": 4}
        given |= (
            {} if name.startswith("StableDiffusion") and "Img2Img" in name else {"height": 32, "width": 32}
        )
    if "Inpaint" in name:
        given["mask_image"] = torch.ones(1, 1, 32, 32)

    def picture() -> torch.Tensor:
        torch.manual_seed(3)
        drawn: torch.Tensor = draw(other, **given)
        return drawn

    base = picture()
    attach(other, tiny_llm, make_adapter(other, tiny_llm))
    ours = picture()
    assert torch.isfinite(ours).all()
    assert (ours - base).abs().max() > 1e-4
    given["prompt"] = "two dog"
    assert (picture() - ours).abs().max() > 1e-5  # it is the LLM's text that counts
    del given["prompt"]
    detach(other)
    assert torch.equal(picture(), base)
