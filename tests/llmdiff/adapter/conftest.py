"""An adapter with loud gates, and a pipeline that carries it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llmdiff.adapter import LLMDiffAdapter, attach, detach, families, is_attached, layers


def build_adapter(pipe: Any, llm: Any, **more: Any) -> LLMDiffAdapter:
    made = LLMDiffAdapter.create(
        pipe, llm_id=llm.id, hidden_size=llm.hidden_size, num_blocks=llm.num_blocks, **more
    )
    with torch.no_grad():
        # Loud gates and a refiner that does something, so that a leak or a lost part shows in the pixels.
        for name, parameter in made.named_parameters():
            if name.endswith((".a1", ".a2")):
                parameter.fill_(1.5)
            elif name == "refiner.to_outside.weight":
                parameter.normal_(std=0.3)
    return made.eval()


@pytest.fixture
def make_adapter() -> Callable[..., LLMDiffAdapter]:
    return build_adapter


@pytest.fixture
def loud_adapter(pipe: Any, tiny_llm: Any) -> LLMDiffAdapter:
    return build_adapter(pipe, tiny_llm)


@pytest.fixture
def attached(pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter) -> Iterator[Any]:
    attach(pipe, tiny_llm, loud_adapter)
    yield pipe
    if is_attached(pipe):
        detach(pipe)


@pytest.fixture
def processors() -> Callable[[Any], dict[str, Any]]:
    """What attaching could change on every attention layer: its processor, its forward; and the hooks."""

    def read(pipe: Any) -> dict[str, Any]:
        denoiser = families.denoiser_of(pipe)
        found: dict[str, Any] = {"hooks": tuple(denoiser._forward_pre_hooks.values())}
        for name, module in layers.attention_layers(denoiser).items():
            found[name] = module.processor
            found[f"{name}.forward"] = vars(module).get("forward")
        return found

    return read


@pytest.fixture
def same_objects(processors: Callable[[Any], dict[str, Any]]) -> Callable[[Any, dict[str, Any]], bool]:
    """Whether a pipeline has the very same objects as before."""

    def compare(pipe: Any, before: dict[str, Any]) -> bool:
        now = processors(pipe)
        return now.keys() == before.keys() and all(
            now[name] is before[name] or (name == "hooks" and now[name] == before[name]) for name in before
        )

    return compare
