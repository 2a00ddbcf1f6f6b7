"""Encodings of many captions in half precision, read as padded batches."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmdiff.language.score_groups import GroupedScores
from llmdiff.types import TextEncoding


class _TokenRows:
    """One row per token of many captions, without padding.

    float16 keeps three digits at a quarter of the memory of padded float32. `parts` has the rows of some captions and
    the number of tokens of each. `order`: the index of each caption, see `by_length`; None if they come in order.
    """

    def __init__(self, parts: Iterable[tuple[Tensor, Tensor]], order: Sequence[int] | None) -> None:
        kept = [(rows.half().cpu(), lengths.cpu()) for rows, lengths in parts]
        self.table = torch.cat([rows for rows, _ in kept])
        lengths = torch.cat([one for _, one in kept])
        back = torch.arange(len(lengths)) if order is None else torch.as_tensor(order).argsort()
        self._lengths, self._starts = lengths[back], (lengths.cumsum(0) - lengths)[back]

    def __len__(self) -> int:
        return len(self._lengths)

    def places(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the rows of these captions, padded on the right, and their token mask. Shapes: (B, T) each."""
        chosen = torch.as_tensor(indices)
        lengths = self._lengths[chosen]
        offsets = torch.arange(int(lengths.max()))
        mask = offsets[None] < lengths[:, None]
        return torch.where(mask, self._starts[chosen][:, None] + offsets[None], 0), mask


class EncodingBank(_TokenRows):
    """Text encodings of captions.

    Shapes:
        table: (tokens of all captions, D) float16.
    """

    def __init__(self, encodings: Iterable[TextEncoding], order: Sequence[int] | None = None) -> None:
        super().__init__(((one.states[one.token_mask], one.token_mask.sum(1)) for one in encodings), order)

    def batch(self, indices: Sequence[int]) -> TextEncoding:
        """Return the encodings of these captions, padded on the right. Shapes: (B, T, D) float32."""
        rows, mask = self.places(indices)
        states = self.table[rows].float().masked_fill(~mask[..., None], 0)
        return TextEncoding(states=states, token_mask=mask)


class GroupBank(_TokenRows):
    """Grouped scores of captions, needed only while gains are learned.

    With a group for each block, a caption of 15 tokens takes 1 MB for SmolLM2's 30 blocks.

    Shapes:
        table: (tokens of all captions, P, D) float16, see `GroupedScores`.
    """

    def __init__(self, grouped: Iterable[GroupedScores], order: Sequence[int] | None = None) -> None:
        super().__init__(((one.parts, one.token_mask.sum(1)) for one in grouped), order)

    def batch(self, indices: Sequence[int]) -> GroupedScores:
        """Return the grouped scores of these captions, in float16."""
        rows, mask = self.places(indices)
        return GroupedScores(parts=self.table[rows[mask]], token_mask=mask)


def by_length(captions: Sequence[str]) -> list[int]:
    """Return the indices of the captions from the shortest to the longest, so that batches need little padding."""
    return sorted(range(len(captions)), key=lambda index: len(captions[index]))


def in_batches(captions: Sequence[str], *, batch: int, title: str) -> Iterable[list[str]]:
    """Yield the captions in order, a batch at a time, with a progress bar."""
    with tqdm(total=len(captions), desc=title, mininterval=5) as bar:
        for start in range(0, len(captions), batch):
            part = list(captions[start : start + batch])
            yield part
            bar.update(len(part))
