"""Look up the family of a pipeline or denoiser, and what its config says of the text."""

import inspect
from typing import Any

from torch import nn

from llmdiff.adapter.contract import prompt_contract
from llmdiff.adapter.family import Family as Family
from llmdiff.adapter.family import submodule
from llmdiff.adapter.family_table import FAMILIES as FAMILIES
from llmdiff.errors import UnsupportedPipelineError

_PLACES = ("transformer", "unet")


def family_of(pipe: Any) -> Family:
    """Return the family that a pipeline belongs to, by its denoiser's class and config.

    Raises:
        UnsupportedPipelineError: its denoiser is missing or of no known family, or its `encode_prompt` has no place
            for an LLM's text.
    """
    return _found(pipe)[1]


def _found(pipe: Any) -> tuple[nn.Module, Family]:
    kind: Any = type(pipe)
    pooled = "positive_pooled" in prompt_contract(kind).returns
    refused = f"pipe is a {kind.__name__}, which LLMDiff cannot control"
    reasons = []
    for place in _PLACES:
        module: Any = getattr(pipe, place, None)
        if not isinstance(module, nn.Module):
            if place in inspect.signature(kind.__init__).parameters:
                reasons.append(
                    f"pipe.{place} is {type(module).__name__}, expected the pipeline's denoiser: load the pipeline "
                    f"with its {place}"
                )
            continue
        # torch.compile wraps the module and prefixes every layer's name; return the wrapped module.
        inner: nn.Module = getattr(module, "_orig_mod", module)
        family = family_of_denoiser(inner)
        if family is not None:
            if pooled and family.pooled_width is None:
                raise UnsupportedPipelineError(
                    f"{refused}: it wants a pooled vector of its text, which adapters for {family.title} do not "
                    "make; use another pipeline of these models"
                )
            return inner, family
        near = [family for family in FAMILIES if family.is_of_class(inner)]
        if near:
            found = " or ".join(", ".join(family.unlike(inner)) for family in near)
            reasons.append(
                f"pipe.{place} has {found}, which no family does that has a {type(inner).__name__} "
                f"({', '.join(family.title for family in near)})"
            )
        else:
            reasons.append(f"its {place} is a {type(inner).__name__}")
    known = ", ".join(family.title for family in FAMILIES)
    why = "; ".join(reasons) or "it has neither a transformer nor a unet"
    raise UnsupportedPipelineError(f"{refused}: {why}. Families: {known}")


def family_named(name: str) -> Family:
    """Return the family with this name, as adapters store it."""
    return next(family for family in FAMILIES if family.name == name)


def family_of_denoiser(denoiser: nn.Module) -> Family | None:
    """Return the family of a U-Net or transformer; None for other modules, such as ControlNets."""
    return next((row for row in FAMILIES if row.is_of_class(denoiser) and not row.unlike(denoiser)), None)


def denoiser_of(pipe: Any) -> nn.Module:
    """Return the pipeline's U-Net or transformer.

    Raises:
        UnsupportedPipelineError: the pipeline belongs to no known family, or its denoiser lacks a part that its
            family has.
    """
    inner, family = _found(pipe)
    for name in family.text_projections:
        if submodule(inner, name) is None:
            raise UnsupportedPipelineError(
                f"the {type(inner).__name__} has no {name}, which every {family.title} has: load one that has it"
            )
    return inner


def is_compiled(pipe: Any) -> bool:
    """Return whether the pipeline's denoiser, or a part of it, was given to torch.compile."""
    inner, _ = _found(pipe)
    wrapped = any(hasattr(getattr(pipe, place, None), "_orig_mod") for place in _PLACES)
    return wrapped or any(part._compiled_call_impl is not None for part in inner.modules())


def text_width(denoiser: nn.Module, family: Family) -> int:
    """Return W, the width of the text states that the denoiser expects."""
    config: Any = denoiser.config
    width = config.get(family.text_width)
    if width is None:
        raise UnsupportedPipelineError(
            f"the denoiser is no {family.title}: its config has no {family.text_width}; use a pipeline of that "
            "family"
        )
    widths = {width} if isinstance(width, int) else set(width)
    if len(widths) != 1:
        raise UnsupportedPipelineError(
            f"the denoiser's {family.text_width} is {width}, expected one width for all blocks"
        )
    return int(widths.pop())


def pooled_width(denoiser: nn.Module, family: Family, pipe: Any = None) -> int | None:
    """Return the width of the pooled text vector that the denoiser expects, None if it expects none.

    `pipe` tells which other inputs it takes; None: those of a text-to-image pipeline.
    """
    config: Any = denoiser.config
    if family.pooled_width is None:
        return None
    if config.get("addition_embed_type") is None:
        return int(config[family.pooled_width])
    # SDXL's added embedding is [pooled text ; numbers as sinusoids]: six sizes and crops, or, in its refiner, four and
    # a score for aesthetics.
    scored = pipe is not None and pipe.config.get("requires_aesthetics_score")
    return int(
        config.projection_class_embeddings_input_dim - (5 if scored else 6) * config.addition_time_embed_dim
    )
