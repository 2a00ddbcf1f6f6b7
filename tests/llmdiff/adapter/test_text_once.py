"""What depends on the text alone is computed once for a picture, not in every step."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from tiny.families import BUILDERS, drawn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmdiff.adapter import attach, detach, families

from .conftest import build_adapter

_STEPS = 4
_PROMPTS = ["a red cat", "two blue dog on the left"]
# Of the base: the first part of its refiner, between its embedder and its time step.
_OF_THE_BASE = "context_embedder.token_refiner.refiner_blocks.0.attn", "context_embedder_2"


class Repeated(TorchFunctionMode):
    """Note the matrix products of a denoiser that were computed in an earlier step, with an equal input."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in denoiser.named_parameters()}
        self.before: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.found: list[str] = []
        self.time: Tensor | None = None
        denoiser.register_forward_pre_hook(self.see_time, with_kwargs=True, prepend=True)
        denoiser.register_forward_hook(self.forget_time)

    def see_time(self, denoiser: Any, args: Any, kwargs: Any) -> None:
        given = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs).arguments
        self.time = given["t" if "t" in given else "timestep"]

    def forget_time(self, *_: Any) -> None:
        self.time = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A pooled vector or the strength of guidance has one row for each prompt; and whatever the image, its
        # attention to a single token is that token's value in all rows.
        if (
            self.time is not None
            and func is F.linear
            and args[0].shape[:-1].numel() > 2 * len(_PROMPTS)
            and not torch.equal(args[0], args[0][..., :1, :].expand_as(args[0]))
        ):
            before = self.before.setdefault(id(args[1]), [])
            same = [time for time, states in before if torch.equal(states, args[0])]
            if any(not torch.equal(time, self.time) for time in same):
                self.found.append(self.names.get(id(args[1]), "a branch"))
            before.append((self.time.clone(), args[0].clone()))
        return func(*args, **(kwargs or {}))


def drawn_of(pipe: Any) -> Tensor:
    wanted = inspect.signature(type(pipe).__call__).parameters
    more: dict[str, Any] = {"negative_prompt": ["a green", "the bird"], "intermediate_timesteps": None}
    return drawn(pipe, _PROMPTS, steps=_STEPS, **{key: value for key, value in more.items() if key in wanted})


@pytest.mark.parametrize("family", ["sd", "pixart", "sana", "sd3"])
def test_gates_and_masks_are_ready_after_the_first_step(
    family: str, tiny_llm: Any, script: Callable[[str], ModuleType]
) -> None:
    pipe, count = BUILDERS[family](), script("launches").Launches
    counts = []
    for attached in (False, True):
        if attached:
            attach(pipe, tiny_llm, build_adapter(pipe, tiny_llm))
        launches = count(families.denoiser_of(pipe))
        drawn_of(pipe)
        for handle in launches.handles:
            handle.remove()
        counts.append(launches.calls[-1])
    base, ours = counts
    # Gates are exponentials; masks of bool become biases, which are padded for the rows of the image.
    for name in ("exp", "where", "scalar_tensor", "masked_fill", "constant_pad_nd", "ne"):
        assert ours[name] <= base[name], name


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("family", [row.name for row in families.FAMILIES])
def test_no_product_with_the_text_is_computed_twice(
    family: str, scale: float, tiny_llm: Any, monkeypatch: Any
) -> None:
    pipe = BUILDERS[family]()
    base = drawn_of(pipe)
    attach(pipe, tiny_llm, build_adapter(pipe, tiny_llm), scale=scale)
    denoiser = families.denoiser_of(pipe)
    with Repeated(denoiser) as repeated:
        once = drawn_of(pipe)
    assert [name for name in repeated.found if not name.startswith(_OF_THE_BASE)] == []
    # Without a source to keep by, all is computed in every step.
    monkeypatch.setattr("llmdiff.adapter.processors.AttachedLayer.kept", lambda self, _, __, read: read())
    assert torch.equal(drawn_of(pipe), once)
    detach(pipe)
    assert torch.equal(drawn_of(pipe), base)


def test_a_changed_projection_or_text_is_computed_anew(tiny_llm: Any) -> None:
    pipe = BUILDERS["sd3"]()
    attach(pipe, tiny_llm, build_adapter(pipe, tiny_llm))
    denoiser = families.denoiser_of(pipe)
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    given = dict(zip(names, pipe.encode_prompt(_PROMPTS[0], None, None), strict=True))
    first = drawn(pipe, None, **given)
    assert torch.equal(drawn(pipe, None, **given), first)
    given["prompt_embeds"].mul_(0.5)
    second = drawn(pipe, None, **given)
    assert not torch.equal(second, first)
    with torch.no_grad():
        denoiser.context_embedder.weight.mul_(2)  # type: ignore[operator, union-attr]
    assert not torch.equal(drawn(pipe, None, **given), second)


@pytest.mark.parametrize("before", [False, True])
def test_a_lora_of_the_projection_that_comes_and_goes(before: bool, tiny_llm: Any) -> None:
    pipe = BUILDERS["flux"]()
    base = drawn(pipe)
    adapter = build_adapter(pipe, tiny_llm)
    attach(pipe, tiny_llm, adapter)
    ours = drawn(pipe)
    denoiser: Any = families.denoiser_of(pipe)
    if before:
        detach(pipe)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["context_embedder"], init_lora_weights=False))
    if before:
        attach(pipe, tiny_llm, adapter)
    assert (drawn(pipe) - ours).abs().max() > 1e-4
    denoiser.set_adapters(["default"], weights=[0.0])
    assert torch.allclose(drawn(pipe), ours, atol=1e-5)
    denoiser.delete_adapters("default")
    assert torch.equal(drawn(pipe), ours)
    detach(pipe)
    assert torch.equal(drawn(pipe), base)
    assert "forward" not in vars(denoiser.context_embedder)
