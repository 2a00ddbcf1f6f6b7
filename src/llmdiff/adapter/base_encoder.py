"""Encode prompts with the base pipeline's own text encoder, for every family's `encode_prompt`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmdiff.adapter.families import Family


@dataclass(frozen=True, kw_only=True)
class BaseTexts:
    """The base's own encoding of prompts.

    Shapes:
        states (B, T, W); mask (B, T), 1 = real, None if the base reads its padding too; pooled
        (B, pooled width) or None.
    """

    states: Tensor
    mask: Tensor | None
    pooled: Tensor | None


def has_text_encoder(pipe: Any) -> bool:
    """Return whether the pipeline came with its text encoder and tokenizer."""
    return getattr(pipe, "tokenizer", None) is not None and getattr(pipe, "text_encoder", None) is not None


def encode_with_base(pipe: Any, family: Family, prompts: Sequence[str]) -> BaseTexts:
    """Return the base's own encoding of prompts, whether or not an LLM is attached."""
    # With offloading, `pipe.device` is where the idle models are, which may be the meta device.
    device = pipe._execution_device
    arguments: dict[str, Any] = {"prompt": list(prompts), "device": device, "num_images_per_prompt": 1}
    if family.encodes_negative:
        arguments["do_classifier_free_guidance"] = False
    # Some pipelines require an argument for each of their text encoders.
    arguments |= {name: None for name in family.second_prompts if not name.startswith("negative")}
    result = type(pipe).encode_prompt(pipe, **arguments)
    parts = dict(zip(family.encode_prompt_returns, result, strict=True))
    return BaseTexts(
        states=parts["positive"], mask=parts.get("positive_mask"), pooled=parts.get("positive_pooled")
    )
