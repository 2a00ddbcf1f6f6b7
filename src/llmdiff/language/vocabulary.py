"""Every token's updates as a text of its own, kept by token id: what `lone="vocabulary"` looks up."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class VocabularyRows:
    """The updates of the tokens of one pass.

    Shapes:
        table: (S, L, D) float32, of every token that is known; places: (N,), where in it each token of the pass is.
    """

    table: Tensor
    places: Tensor

    def of_block(self, index: int) -> Tensor:
        """Returns the updates of one block, (N, D)."""
        return self.table[self.places, index]


class LoneVocabulary:
    """Updates by token id: computed when a token is first met, kept in memory up to `max_bytes`.

    A token takes 4 L D bytes: 69 kB for SmolLM2-135M, half a megabyte for a model of 7 B. When there is no room left,
    all of them are dropped and those of the pass at hand are computed anew. A pass with more tokens than there is
    room for gets them all the same.
    """

    def __init__(self, num_blocks: int, hidden_size: int, *, max_bytes: int = _MAX_BYTES) -> None:
        self.max_tokens = max(1, max_bytes // (4 * num_blocks * hidden_size))
        self._places: dict[int, int] = {}
        self._table: Tensor | None = None

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, token_ids: Tensor, *, compute: Callable[[Tensor], Tensor]) -> VocabularyRows:
        """Returns the updates of these tokens, (N,), of which `compute` gives those that are not known yet.

        Shapes:
            compute: (n,) token ids => (n, L, D) float32.
        """
        ids: list[int] = token_ids.tolist()
        wanted = dict.fromkeys(ids)
        missing = [token for token in wanted if token not in self._places]
        if missing and len(self._places) + len(missing) > self.max_tokens:
            self.forget()
            missing = list(wanted)
        if missing:
            # A tensor made in inference mode could not be written to outside of it, by a later pass.
            with torch.inference_mode(False), torch.no_grad():
                self._append(missing, compute(torch.tensor(missing, device=token_ids.device)))
        assert self._table is not None
        places = torch.tensor([self._places[token] for token in ids], device=self._table.device)
        return VocabularyRows(table=self._table, places=places)

    def leave_device(self) -> None:
        """Returns None; keeps everything on the CPU from now on, from where a pass takes its own rows only."""
        if self._table is not None:
            self._table = self._table.cpu()

    def forget(self) -> None:
        """Returns None; drops everything."""
        self._places.clear()
        self._table = None

    def _append(self, tokens: list[int], rows: Tensor) -> None:
        known, needed = len(self._places), len(self._places) + len(tokens)
        if self._table is None or needed > len(self._table):
            # Twice the room every time: what is known is copied a few times, not once a pass.
            room = max(needed, min(2 * known, self.max_tokens))
            grown = rows.new_empty(room, *rows.shape[1:], device=_device(self._table, rows))
            if self._table is not None:
                grown[:known] = self._table[:known]
            self._table = grown
        self._table[known:needed] = rows
        self._places.update(zip(tokens, range(known, needed), strict=True))


def _device(table: Tensor | None, rows: Tensor) -> torch.device:
    return rows.device if table is None else table.device
