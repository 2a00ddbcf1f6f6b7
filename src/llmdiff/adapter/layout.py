"""The layout of the tensor that replaces the prompt embeddings in diffusers.

Its width identifies its content (W = the denoiser's text width, D = the LLM's):

    W              states of the base's text encoder, not from an attached `encode_prompt`
    W + 1          [base text states ; 1]                   the base's states, passed on deliberately
    W + D          [phi(c) ; c]                             the LLM's
    W + D + W + 1  [phi(c) ; c ; base text states ; real]   the LLM's beside the base's

With routing there are d encodings, for d groups of attention layers. "phi(c) ; c" then stands for
[phi(c_1) ; ... ; phi(c_d) ; c_1 ; ... ; c_d], of width d (W + D), and a layer takes its own group's.

c is the normalised text encoding. A row whose c part is all zeros is padding, so prompts are padded to one
length with zero rows, and no separate mask is needed. The base's states may hold zero rows that are not padding
(Stable Diffusion 3 without its T5), so they have an extra column that is 1 in real rows.
"""

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdiff.errors import AttachError

NO_TEXT = (
    "the denoiser is under LLM control, but this pipeline calls it without the text of encode_prompt: detach, or use "
    "a pipeline that attach accepts"
)


class CopiedNotPickled:
    """What attaching leaves on a pipeline or denoiser: it is copied together with them, and never pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def __reduce__(self) -> Any:
        raise AttachError(
            "a pipeline or denoiser with an LLM attached cannot be pickled: detach first, or use copy.deepcopy or "
            "save_pretrained"
        )


@dataclass(frozen=True)
class TextParts:
    """The parts of a tensor of text states.

    Shapes:
        projected (B, T, W), phi(c); llm_states (B, T, D), c; base (B, T, W) and base_real (B, T) bool, or None.
        With routing, projected and llm_states of all groups side by side, until `of_group` takes one. lengths: the
        numbers of rows of texts that came one by one, each without padding; else None.
    """

    projected: Tensor
    llm_states: Tensor
    base: Tensor | None = None
    base_real: Tensor | None = None
    lengths: tuple[int, ...] | None = None


def of_group(states: Tensor, group: int, groups: int) -> Tensor:
    """Return the states of one group, (B, T, d * width) => (B, T, width)."""
    return states if groups == 1 else states.chunk(groups, dim=-1)[group]


def mean_of_groups(states: Tensor, groups: int) -> Tensor:
    """Return the mean over groups, (B, T, d * width) => (B, T, width)."""
    return states if groups == 1 else states.reshape(*states.shape[:-1], groups, -1).mean(dim=-2)


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """The widths W and D of a module's text states and their number of groups d.

    With `strict`, the base's states are accepted only from an attached `encode_prompt`.
    """

    width: int
    hidden_size: int
    groups: int = 1
    strict: bool = False

    @property
    def ends(self) -> tuple[int, int]:
        """Return where all groups' phi(c) and all groups' c end: d W and d (W + D)."""
        return self.groups * self.width, self.groups * (self.width + self.hidden_size)

    def split(self, states: Tensor) -> TextParts | None:
        """Return the parts of a tensor from an attached `encode_prompt`; None if it holds only the base's states.

        Raises:
            ValueError: the width matches none of the layouts.
        """
        found, width, (start, end) = states.shape[-1], self.width, self.ends
        if found in (width, width + 1):
            return None
        if found not in (end, end + width + 1):
            raise ValueError(
                f"encoder_hidden_states has width {found}, expected {width} (the base's states), "
                f"{end} or {end + width + 1} (from the attached encode_prompt)"
            )
        projected, llm_states = states[..., :start], states[..., start:end]
        if found == end:
            return TextParts(projected, llm_states)
        return TextParts(projected, llm_states, states[..., end:-1], states[..., -1] != 0)

    def base(self, states: Tensor) -> Tensor:
        """Return the base's states (B, T, W) from a tensor that holds nothing else.

        Raises:
            AttachError: with `strict`, the states are not from an attached `encode_prompt`: a pipeline that only
                shares the denoiser would silently draw without the LLM.
        """
        if self.strict and states.shape[-1] == self.width:
            raise AttachError(
                "the denoiser is under LLM control, but this pipeline is not (from_pipe shares the denoiser only): "
                "attach the same adapter with the same scale to this pipeline too, or detach the other one"
            )
        # Contiguous: matrix products of a slice sum in another order than in the base pipeline.
        return states[..., : self.width].contiguous()


def mark_base(states: Tensor) -> Tensor:
    """Return [base text states ; 1], (B, T, W) => (B, T, W + 1)."""
    return F.pad(states, (0, 1), value=1.0)


def beside_base(states: Tensor, base: Tensor, base_mask: Tensor | None) -> Tensor:
    """Return [phi(c) ; c ; base text states ; real], with zero rows where one of them is shorter.

    Shapes:
        (B, T1, W + D), (B, T2, W), (B, T2) or None (all real) => (B, max(T1, T2), W + D + W + 1).
    """
    real = base.new_ones(base.shape[:2]) if base_mask is None else base_mask.to(base)
    marked = torch.cat([base, real[..., None]], dim=-1)
    tokens = max(states.shape[1], base.shape[1])
    return torch.cat([pad_rows(states, tokens), pad_rows(marked, tokens)], dim=-1)


def pad_rows(states: Tensor, tokens: int) -> Tensor:
    """Return the states with zero rows appended, (B, T, width) => (B, tokens, width)."""
    return F.pad(states, (0, 0, 0, tokens - states.shape[1]))


def real_rows(llm_states: Tensor) -> Tensor:
    """Return which tokens are real, (B, T, D) => (B, T) bool."""
    return (llm_states != 0).any(dim=-1)


# Attention masks have two or three dimensions, a packed mask has four.
PACKED_MASK_NDIM = 4


def pack_into_mask(parts: TextParts) -> Tensor:
    """Pack c into an attention mask, (B, 1, T, D + 1); the last column is 1 where a base row is real."""
    c = parts.llm_states
    real = c.new_zeros(c.shape[:2]) if parts.base_real is None else parts.base_real.to(c)
    return torch.cat([c, real[..., None]], dim=-1)[:, None]


def parts_beside(rows: Tensor, carried: Tensor) -> TextParts:
    """Return the parts from projected rows and the packed mask."""
    llm_states = carried[:, 0, :, :-1]
    tokens = llm_states.shape[1]
    if rows.shape[1] == tokens:
        return TextParts(rows, llm_states)
    return TextParts(rows[:, :tokens], llm_states, rows[:, tokens:], carried[:, 0, :, -1] != 0)
