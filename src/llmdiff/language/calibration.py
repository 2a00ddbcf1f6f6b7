"""Measure the typical norms of an LLM's block updates: the fixed scales of an encoding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmdiff.errors import PromptError
from llmdiff.language.blocks import Lone, run_blocks
from llmdiff.language.llm import DecoderLLM

_BATCH = 8
# Number of training captions to calibrate on: with four times as many, no scale of SmolLM2-135M changes by more than
# 1.5 %, and a CPU reads for a minute longer.
CALIBRATION_CAPTIONS = 64
_TINY = 1e-12
# The scales of an LLM's blocks are medians over a few hundred tokens of ordinary captions.
CALIBRATION_PROMPTS = (
    "a photo of a cat sitting on a red sofa",
    "two apples to the left of a blue bicycle",
    "an oil painting of a harbour at sunset, with three small boats and a lighthouse",
    "a green triangle above a large yellow circle on a grey background",
    "portrait of an old fisherman with a white beard, soft light from the window",
    "a bowl of noodles beside a cup of tea on a wooden table, seen from above",
    "four children play football in the rain while a dog watches them",
    "the animal that gives us milk, standing in front of a barn",
    "a city street at night with neon signs reflected in the puddles",
    "an astronaut riding a horse on the moon",
    "a quiet forest path in autumn, fog between the trees, a wooden bridge in the distance",
    "logo of a bakery: a smiling loaf of bread that wears a chef's hat",
    "a small house under a big tree, clouds in the sky, simple drawing",
    "one orange cat and two black dogs sleeping next to each other",
    "a train that crosses a stone bridge over a river in the mountains in winter",
    "a vase with five tulips, watercolour",
)


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Median norms of a token's states, BOS left out.

    Shapes:
        x0: (), of x_0; scores, lone: (L,), of every block's u - v and v.
    """

    x0: Tensor
    scores: Tensor
    lone: Tensor


@torch.no_grad()
def measure_scales(
    llm: DecoderLLM, prompts: Sequence[str], *, lone: Lone, template: str | None, max_length: int
) -> Scales:
    """Return the scales of an LLM over these prompts.

    Raises:
        PromptError: the prompts hold no token besides BOS.
    """
    x0: list[Tensor] = []
    scores: list[list[Tensor]] = [[] for _ in range(llm.num_blocks)]
    alone: list[list[Tensor]] = [[] for _ in range(llm.num_blocks)]
    # Batches of similar lengths need less padding.
    ordered = sorted(prompts, key=len)
    with llm.placement.in_use():  # move the weights once, not for every batch
        for start in range(0, len(ordered), _BATCH):
            tokens = llm.tokenize(ordered[start : start + _BATCH], template=template, max_length=max_length)
            words = tokens.token_mask & (tokens.token_mask.cumsum(1) > 1)

            def measure(index: int, x: Tensor, u: Tensor, v: Tensor, words: Tensor = words) -> None:
                real = words.to(x.device)
                if index == 0:
                    x0.append(norms(x[real]))
                scores[index].append(norms((u - v)[real]))
                alone[index].append(norms(v[real]))

            run_blocks(llm, tokens, lone=lone, visit=measure)
    if sum(found.numel() for found in x0) == 0:
        raise PromptError(
            "prompts hold no words to calibrate on; pass captions like those the adapter will see"
        )
    return Scales(
        x0=_median(x0),
        scores=torch.stack([_median(found) for found in scores]),
        lone=torch.stack([_median(found) for found in alone]),
    )


def norms(states: Tensor) -> Tensor:
    """Return the norm of every token's state: (..., D) => (...), float32."""
    found: Tensor = torch.linalg.vector_norm(states.float(), dim=-1)
    return found


def scale_factors(updates: Tensor, scale: Tensor, clip: float) -> Tensor:
    """Return the factors that divide updates by a scale and clip their norms to `clip` scales.

    Shapes:
        updates: (..., D), scale: broadcastable to (..., 1) => (..., 1).
    """
    if math.isinf(clip):
        return (1 / scale).expand(*updates.shape[:-1], 1)
    # The minimum keeps the gradient finite for a norm of 0; the factor is then 1 / scale.
    size = norms(updates).clamp(min=_TINY)[..., None]
    return (clip * scale / size).clamp(max=1.0) / scale


def _median(found: list[Tensor]) -> Tensor:
    """Return the median of all norms, at least 1e-6, because updates are divided by it."""
    return torch.cat(found).median().clamp(min=1e-6)
