"""Encode prompts with the base pipeline's own text encoder, for every family's `encode_prompt`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmdiff.adapter.contract import prompt_contract
from llmdiff.adapter.families import family_of
from llmdiff.language.rows import padded_batch


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
    """Return whether the pipeline came with a text encoder and a tokenizer; SDXL's refiner has only the second ones."""
    return all(
        any(getattr(pipe, name + number, None) is not None for number in ("", "_2", "_3"))
        for name in ("text_encoder", "tokenizer")
    )


def encode_with_base(pipe: Any, prompts: Sequence[str]) -> BaseTexts:
    """Return the base's own encoding of prompts, whether or not an LLM is attached."""
    contract = prompt_contract(pipe.__class__)
    # With offloading, `pipe.device` is where the idle models are, which may be the meta device.
    arguments: dict[str, Any] = {"prompt": list(prompts), "device": pipe._execution_device}
    if contract.copies is not None:
        arguments[contract.copies] = 1
    if "do_classifier_free_guidance" in contract.parameters:
        arguments["do_classifier_free_guidance"] = False
    if "batch_size" in contract.parameters:
        arguments["batch_size"] = len(prompts)
    # Some pipelines require an argument for each of their text encoders.
    arguments |= {name: None for name in contract.second_prompts if not name.startswith("negative")}
    result = type(pipe).encode_prompt(pipe, **arguments)
    parts = dict(zip(contract.returns, result, strict=True))
    states, mask = parts["positive"], parts.get("positive_mask")
    if family_of(pipe).base_reads_padding:
        mask = None
    if isinstance(states, list):
        states, mask = padded_batch(states)
    return BaseTexts(states=states, mask=mask, pooled=parts.get("positive_pooled"))
