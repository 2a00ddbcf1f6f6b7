"""Encodings of many captions, kept in half precision and handed out as padded batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.language.score_groups import GroupedScores
from llmdiff.types import TextEncoding


class EncodingBank:
    """Text encodings of captions, each stored without padding.

    float16 keeps a token's state to three digits, a quarter of the memory that padded float32 would take.

    `order` says which caption each row of the encodings belongs to, see `by_length`; None: they come in order.

    Shapes:
        states: (tokens of all captions, D) float16.
    """

    def __init__(self, encodings: Iterable[TextEncoding], order: Sequence[int] | None = None) -> None:
        rows: list[Tensor] = []
        lengths: list[Tensor] = []
        for encoding in encodings:
            rows.append(encoding.states[encoding.token_mask].half().cpu())
            lengths.append(encoding.token_mask.sum(1).cpu())
        self.states = torch.cat(rows)
        self._index = _Ragged.ordered(torch.cat(lengths), order)

    def __len__(self) -> int:
        return len(self._index.lengths)

    def batch(self, indices: Sequence[int]) -> TextEncoding:
        """The encodings of these captions, padded on the right to the longest of them; (B, T, D) float32."""
        rows, mask = self._index.rows(indices)
        states = self.states[rows].float().masked_fill(~mask[..., None], 0)
        return TextEncoding(states=states, token_mask=mask)


class GroupBank:
    """Grouped scores of captions, each stored without padding: only while gains are learned.

    With a group for each block, a caption of 15 tokens takes 1 MB for SmolLM2's 30 blocks. `order`: as above.

    Shapes:
        parts: (tokens of all captions, P, D) float16, see `GroupedScores`.
    """

    def __init__(self, grouped: Iterable[GroupedScores], order: Sequence[int] | None = None) -> None:
        rows: list[Tensor] = []
        lengths: list[Tensor] = []
        for scores in grouped:
            rows.append(scores.parts.half().cpu())
            lengths.append(scores.token_mask.sum(1).cpu())
        self.parts = torch.cat(rows)
        self._index = _Ragged.ordered(torch.cat(lengths), order)

    def __len__(self) -> int:
        return len(self._index.lengths)

    def batch(self, indices: Sequence[int]) -> GroupedScores:
        """The grouped scores of these captions; float16."""
        rows, mask = self._index.rows(indices)
        return GroupedScores(parts=self.parts[rows[mask]], token_mask=mask)


def by_length(captions: Sequence[str]) -> list[int]:
    """Indices of the captions from the shortest to the longest: neighbours read together need little padding."""
    return sorted(range(len(captions)), key=lambda index: len(captions[index]))


def in_batches(captions: Sequence[str], *, batch: int, title: str) -> Iterable[list[str]]:
    """The captions in order, a batch at a time, under a progress bar."""
    with tqdm(total=len(captions), desc=title, mininterval=5) as bar:
        for start in range(0, len(captions), batch):
            part = list(captions[start : start + batch])
            yield part
            bar.update(len(part))


@dataclass(frozen=True)
class _Ragged:
    """Where each caption's tokens lie in one long table."""

    lengths: Tensor
    starts: Tensor

    @classmethod
    def ordered(cls, lengths: Tensor, order: Sequence[int] | None) -> Self:
        back = torch.arange(len(lengths)) if order is None else torch.as_tensor(order).argsort()
        return cls(lengths[back], (lengths.cumsum(0) - lengths)[back])

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        lengths = self.lengths[chosen]
        offsets = torch.arange(int(lengths.max()))
        mask = offsets[None] < lengths[:, None]
        return torch.where(mask, self.starts[chosen][:, None] + offsets[None], 0), mask
