"""Convert the tokens of one pass between rows without padding and a padded batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llmdiff.language.tokens import PromptTokens

# Blocks share few tensors: a mask or two, a rotary table or two, position ids.
_MAX_SHARED = 8


def padded_batch(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return tensors of different lengths as one, padded with 0 on the right, and its mask on the CPU.

    Shapes: (T_b, ...) for each of B rows => (B, T, ...), (B, T) bool.
    """
    lengths = torch.tensor([len(row) for row in rows])
    states = pad_sequence(list(rows), batch_first=True)
    return states, torch.arange(states.shape[1]) < lengths[:, None]


class SharedInputs:
    """A small cache of tensors derived from inputs that all blocks share, by the identity of the input."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, Tensor]] = {}

    def of(self, given: object, make: Callable[[], Tensor]) -> Tensor:
        """Return the cached result for this input, or call `make`."""
        known = self._made.get(id(given))
        if known is None:
            if len(self._made) >= _MAX_SHARED:
                self._made.clear()
            # Keep a reference to the input, so that no other object gets its id.
            known = self._made[id(given)] = given, make()
        return known[1]


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Index tables of one pass: N words in order, then one row for the BOS of all prompts.

    Shapes:
        run_ids: (R, S), the tokens run behind the prefix, padded on the right. R counts prompts with at least one
            word, so an empty negative prompt costs nothing.
        run_places: (N,), index of each word in the flattened (R*S).
        token_places: (N + 1,), index of each row in the flattened (B*T); the last is BOS of the first prompt.
        rows: (B*T,), row of every token; N + 1 for padding.
    """

    run_ids: Tensor
    run_places: Tensor
    token_places: Tensor
    rows: Tensor
    batch: int
    width: int
    _shared: SharedInputs = field(default_factory=SharedInputs, repr=False, compare=False)

    @classmethod
    def of(cls, tokens: PromptTokens, device: torch.device) -> "TokenRows":
        """Return the rows of a batch of prompts."""
        batch, width = tokens.input_ids.shape
        input_ids, mask = tokens.input_ids.cpu(), tokens.token_mask.cpu()
        kept = [ids[real].tolist() for ids, real in zip(input_ids, mask, strict=True)]
        runs = [
            (len(context), [*context, *row[1:]])
            for context, row in zip(tokens.context_ids, kept, strict=True)
            if len(row) > 1
        ]
        steps = max((len(run) for _, run in runs), default=0)
        run_ids = torch.zeros(len(runs), steps, dtype=torch.int64)
        run_places: list[int] = []
        for r, (dropped, run) in enumerate(runs):
            run_ids[r, : len(run)] = torch.tensor(run, dtype=torch.int64)
            run_places += range(r * steps + dropped, r * steps + len(run))
        is_bos = (mask & (mask.cumsum(1) == 1)).flatten()
        words = (mask.flatten() & ~is_bos).nonzero().flatten()
        rows = torch.full((batch * width,), len(words) + 1)
        rows[words] = torch.arange(len(words))
        rows[is_bos] = len(words)
        return cls(
            run_ids=run_ids.to(device),
            run_places=torch.tensor(run_places, dtype=torch.int64, device=device),
            token_places=torch.cat([words, is_bos.nonzero().flatten()[:1]]).to(device),
            rows=rows.to(device),
            batch=batch,
            width=width,
        )

    def behind(self, prefix_ids: tuple[int, ...]) -> "TokenRows":
        """Return the same rows for texts that include the prefix."""
        runs, steps = self.run_ids.shape
        prefix = torch.tensor([prefix_ids], dtype=torch.int64, device=self.run_ids.device).expand(runs, -1)
        shift = len(prefix_ids) * (1 + self.run_places.div(max(steps, 1), rounding_mode="floor"))
        return replace(
            self,
            run_ids=torch.cat([prefix, self.run_ids], dim=1),
            run_places=self.run_places + shift,
            _shared=SharedInputs(),
        )

    @property
    def words(self) -> int:
        """Return N, the number of words."""
        return len(self.run_places)

    def of_run(self, states: Tensor) -> Tensor:
        """Return the rows of the words: (R, S, ...) => (N, ...)."""
        flat = states.flatten(0, 1)
        if len(flat) == self.words:  # no padding
            return flat
        return flat.index_select(0, self.run_places.to(states.device))

    def of_run_shared(self, states: Tensor) -> Tensor:
        """Return `of_run` of a tensor that all blocks share, cached for the pass; (1, S, ...) is repeated."""
        return self._shared.of(states, lambda: self.of_run(self.for_every_prompt(states)))

    def for_every_prompt(self, states: Tensor) -> Tensor:
        """Repeat a shared tensor for every prompt: (1, S, ...) or (R, S, ...) => (R, S, ...)."""
        return states.expand(len(self.run_ids), *states.shape[1:])

    def by_token(self, value: object) -> TypeGuard[Tensor]:
        """Return whether the value is a tensor with a row for each token: (1, S, ...) or (R, S, ...)."""
        batch, steps = self.run_ids.shape
        return (
            isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] in ((1, steps), (batch, steps))
        )

    def of_tokens(self, values: Tensor) -> Tensor:
        """Return the values of the rows: (B, T) => (N + 1,)."""
        return values.flatten()[self.token_places.to(values.device)]

    def padded(self, rows: Tensor) -> Tensor:
        """Return rows as a batch with padding 0: (N + 1, ...) => (B, T, ...)."""
        padding = rows.new_zeros(1, *rows.shape[1:])
        places = self.rows.to(rows.device)
        return (
            torch.cat([rows, padding])
            .index_select(0, places)
            .reshape(self.batch, self.width, *rows.shape[1:])
        )
