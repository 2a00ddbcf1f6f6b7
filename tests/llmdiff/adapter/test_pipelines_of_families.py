"""Every pipeline class that is accepted draws under LLM control, and gives its base back."""

from typing import Any

import pytest
import torch
from tiny.every_pipeline import ACCEPTED, asked, build, pixels

from llmdiff.adapter import FAMILIES, attach, detach, families

CASES = [(family, name) for family, names in ACCEPTED.items() for name in names]


def test_every_family_has_pipelines() -> None:
    assert set(ACCEPTED) == {family.name for family in FAMILIES}
    assert len(FAMILIES) >= 12
    assert len(CASES) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES, ids=[name for _, name in CASES])
def test_the_pipeline_draws(family: str, name: str, tiny_llm: Any, make_adapter: Any) -> None:
    pipe = build(name, family)
    assert families.family_of(pipe).name == family

    def picture(prompt: str = "a cat") -> torch.Tensor:
        torch.manual_seed(3)
        return pixels(pipe(**asked(pipe, prompt=prompt)))

    base = picture()
    adapter = make_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    ours = picture()
    assert torch.isfinite(ours).all()
    assert (ours - base).abs().max() > 1e-4
    assert (picture("two dog") - ours).abs().max() > 1e-5  # it is the LLM's text that counts
    detach(pipe)
    assert torch.equal(picture(), base)


# What a pipeline adds to the picture by itself, and the arguments that turn it off.
GUIDANCE = {
    name: {key: 0.0 for key in ("pag_scale", "sag_scale") if key[:3].upper() in name}
    for _, name in CASES
    if "PAG" in name or "SAG" in name
}


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.hostile("ignored text")
def test_the_pipelines_own_guidance_acts(name: str, tiny_llm: Any, make_adapter: Any) -> None:
    family = next(family for family, names in ACCEPTED.items() if name in names)
    pipe = build(name, family)

    def picture(**more: Any) -> torch.Tensor:
        torch.manual_seed(3)
        return pixels(pipe(**asked(pipe, prompt="a cat", **more)))

    changed = {"without the LLM": (picture() - picture(**GUIDANCE[name])).abs().max()}
    attach(pipe, tiny_llm, make_adapter(pipe, tiny_llm))
    changed["with the LLM"] = (picture() - picture(**GUIDANCE[name])).abs().max()
    assert min(changed.values()) > 1e-4, changed
