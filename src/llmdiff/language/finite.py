"""Detect NaN and infinite states of an LLM and name their cause."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from llmdiff.errors import ConfigError, CorruptWeightsError, LLMDiffError


class FiniteWatch:
    """Record for every step of a pass whether its states are finite, and synchronise with the device once at the end.

    The record is the sum of the states in float32, which is not finite if a state is not. This needs no mask of the
    states' size. States that are finite but whose sum exceeds 3e38 count as overflow.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.sums = torch.zeros(steps, device=device)

    def see(self, step: int, *states: Tensor | None) -> None:
        """Record whether these states are finite, without waiting for the device."""
        for tensor in states:
            if tensor is not None:
                self.sums[step] += tensor.detach().sum(dtype=torch.float32).to(self.sums.device)

    def first_bad_step(self) -> int | None:
        """Return the first step with non-finite states; None if there is none."""
        finite = self.sums.isfinite().tolist()
        return next((step for step, good in enumerate(finite) if not good), None)


def non_finite_error(
    step: str, weights: Iterable[tuple[str, Tensor]], *, id: str, dtype: torch.dtype
) -> LLMDiffError:
    """Return the error for states that are not finite after `step`: a damaged weight, or an overflow."""
    for name, weight in weights:
        # Quantised weights (bitsandbytes, torchao) have their own classes, and not all support isfinite.
        plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
        if plain and not weight.is_meta and not bool(torch.isfinite(weight).all()):
            return CorruptWeightsError(
                f"llm {id!r} has NaN or infinite values in its weight {name!r}: the file is damaged or its "
                "training diverged; use another copy of the LLM"
            )
    kind = str(dtype).removeprefix("torch.")
    remedies = {torch.float16: "load it with dtype=torch.bfloat16", torch.float32: "use another LLM"}
    remedy = remedies.get(dtype, "load it with dtype=torch.float32")
    return ConfigError(
        f"llm {id!r} computes NaN or infinite states in {step} in {kind}, though its weights are finite: "
        f"{remedy}"
    )
