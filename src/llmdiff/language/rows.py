"""The tokens of one pass as rows without padding, and the way back into a padded batch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from torch import Tensor

from llmdiff.language.tokens import PromptTokens

# Blocks share a few tensors at most: a mask or two, a rotary table or two, position ids.
_MAX_SHARED = 8


class SharedInputs:
    """What is made of the inputs that blocks share, by the input itself: made once a pass, a few kept at a time."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, Tensor]] = {}

    def of(self, given: object, make: Callable[[], Tensor]) -> Tensor:
        """Returns what `make` gives for this input, or gave before."""
        known = self._made.get(id(given))
        if known is None:
            if len(self._made) >= _MAX_SHARED:
                self._made.clear()
            # Kept beside the result, so that its id stays its own.
            known = self._made[id(given)] = given, make()
        return known[1]


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Where the tokens of one pass come from and go to: N words in order, and one row for the BOS of all prompts.

    Shapes:
        run_ids: (R, S), what the LLM reads behind the prefix, padded on the right, of the R prompts with any word: an
            empty one, as a guided picture has, costs nothing.
        run_places: (N,), the kept tokens except BOS, as places in the flat (R*S).
        token_places: (N + 1,), of the rows as places in the flat (B*T); BOS comes last, that of the first prompt.
        rows: (B*T,), the row of every token; N + 1 where padded.
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
        """Returns the rows of a batch of prompts."""
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
        """Returns the same rows of runs that have the prefix in front of each text."""
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
        """N."""
        return len(self.run_places)

    def of_run(self, states: Tensor) -> Tensor:
        """(R, S, ...) => (N, ...): the words."""
        flat = states.flatten(0, 1)
        if len(flat) == self.words:  # no padding, nothing to leave out
            return flat
        return flat.index_select(0, self.run_places.to(states.device))

    def of_run_shared(self, states: Tensor) -> Tensor:
        """The same of what every block gets, looked up once a pass; (1, S, ...) is taken for every prompt."""
        return self._shared.of(states, lambda: self.of_run(self.for_every_prompt(states)))

    def for_every_prompt(self, states: Tensor) -> Tensor:
        """(1, S, ...) or (R, S, ...) => (R, S, ...)."""
        return states.expand(len(self.run_ids), *states.shape[1:])

    def by_token(self, value: object) -> TypeGuard[Tensor]:
        """Whether this has a row for each token of the run, shared by all prompts or not: (1, S, ...), (R, S, ...)."""
        batch, steps = self.run_ids.shape
        return (
            isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] in ((1, steps), (batch, steps))
        )

    def of_tokens(self, values: Tensor) -> Tensor:
        """(B, T) => (N + 1,)."""
        return values.flatten()[self.token_places.to(values.device)]

    def padded(self, rows: Tensor) -> Tensor:
        """(N + 1, ...) => (B, T, ...), padding 0."""
        padding = rows.new_zeros(1, *rows.shape[1:])
        places = self.rows.to(rows.device)
        return (
            torch.cat([rows, padding])
            .index_select(0, places)
            .reshape(self.batch, self.width, *rows.shape[1:])
        )
