"""A block called on tokens alone: in one call with the text, so that its weights are read once, or in its own."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llmdiff.language.rows import SharedInputs, TokenRows

# What a mask can express is left to these; others hide keys in ways of their own.
_WITH_MASKS = ("sdpa", "eager")
# Where many tokens share a reading of the weights as it is, larger tensors cost more than is saved. On 2 cores joined
# calls took 0.6 of the time for a prompt of 5 to 10 words, 0.7 for 20, 0.93 for 8 prompts of 40, 1.06 for 32 of 20.
_MAX_TOKENS = 768
# Attention is dense over both parts: in one long text it costs more than is saved.
MAX_KEYS = 512


class JoinedCall:
    """What the blocks of one pass are called with instead, and how their answer is taken apart again.

    The lone tokens stand behind the text as more steps of it, and the mask keeps every one of them to itself (and
    BOS). Nothing but attention mixes tokens, so each gets what a call of its own would give it.

    B prompts of S steps behind a prefix of P keys, N words; the lone tokens are spread over the prompts, K each.
    """

    def __init__(self, rows: TokenRows, prefix_length: int, *, sees_bos: bool) -> None:
        batch, self._steps = rows.run_ids.shape
        self._rows, self._prefix, self._sees_bos = rows, prefix_length, sees_bos
        self._each = -(-rows.words // batch)
        # What is left over repeats the first word.
        spare = batch * self._each - rows.words
        places = torch.arange(rows.words, device=rows.run_places.device)
        self._order = torch.cat([places, places.new_zeros(spare)])
        self._shared = SharedInputs()

    @classmethod
    def of(cls, llm: Any, rows: TokenRows, prefix_length: int, *, sees_bos: bool) -> "JoinedCall | None":
        """Returns the joined call of a pass, or None where separate calls are right or cheaper."""
        if rows.words == 0 or llm.model.config._attn_implementation not in _WITH_MASKS:
            return None
        made = cls(rows, prefix_length, sees_bos=sees_bos)
        tokens = rows.run_ids.shape[0] * (made._steps + made._each)
        return made if tokens <= _MAX_TOKENS and made._keys <= MAX_KEYS else None

    @property
    def _keys(self) -> int:
        """P + S + K."""
        return self._prefix + self._steps + self._each

    def inputs(self, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Returns what the block is called with: states (B, S, D) => (B, S + K, D), and the rest to match."""
        joined = {name: self._joined(name, value, x) for name, value in kwargs.items()}
        return self._with_lone(x), joined

    def outputs(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the text's part and the lone tokens': (B, S + K, D) => (B, S, D), (N, D)."""
        text, lone = out[:, : self._steps], out[:, self._steps :]
        return text, lone.flatten(0, 1)[: self._rows.words]

    def _joined(self, name: str, value: Any, x: Tensor) -> Any:
        if name == "attention_mask":
            return self._shared.of(value, lambda: self._mask(value, x))
        if isinstance(value, tuple):
            return tuple(self._joined("", item, x) for item in value)
        if self._rows.by_token(value):
            # Rotary tables, position ids, per-layer inputs: every token keeps its own row.
            text = self._rows.for_every_prompt(value)
            return self._shared.of(value, lambda: self._with_lone(text))
        return value

    def _with_lone(self, text: Tensor) -> Tensor:
        lone = self._rows.of_run(text).index_select(0, self._order.to(text.device))
        return torch.cat([text, lone.reshape(text.shape[0], self._each, *lone.shape[1:])], dim=1)

    def _mask(self, text: Tensor | None, x: Tensor) -> Tensor:
        """The text's own mask, None if it sees all that is before it, with the lone tokens' rows and columns."""
        steps, keys, behind = self._steps, self._keys, self._prefix + self._steps
        batch = 1 if text is None else text.shape[0]
        visible = torch.zeros(batch, 1, steps + self._each, keys, dtype=torch.bool, device=x.device)
        visible[:, :, :steps, :behind] = torch.ones(steps, behind, device=x.device).tril(self._prefix).bool()
        visible[:, :, steps:, behind:] = torch.eye(self._each, device=x.device).bool()
        if self._sees_bos:
            visible[:, :, steps:, 0] = True
        if text is None:
            return visible
        if text.dtype == torch.bool:
            visible[:, :, :steps, :behind] = text
            return visible
        added = text.new_zeros(visible.shape).masked_fill_(~visible, torch.finfo(text.dtype).min)
        added[:, :, :steps, :behind] = text
        return added


def call_alone(
    block: nn.Module, words: Tensor, kwargs: dict[str, Any], rows: TokenRows, cache: Cache | None
) -> Tensor:
    """Returns the block's output for every token as a text of its own, (N, D)."""

    def alone(name: str, value: Any) -> Any:
        if isinstance(value, Cache):
            return cache
        if name == "attention_mask":
            # Attention that adds its mask (eager) may not take None for "all visible".
            adds = isinstance(value, Tensor) and value.is_floating_point()
            return (
                value.new_zeros(1, 1, 1, 1 + (cache is not None)).expand(len(words), -1, -1, -1)
                if adds
                else None
            )
        if name == "use_cache":
            return cache is not None
        if isinstance(value, tuple):
            return tuple(alone("", item) for item in value)
        if rows.by_token(value):
            # Rotary tables, position ids, per-layer inputs: every token keeps its own row.
            return rows.of_run_shared(value).unsqueeze(1)
        return value

    # forward, not __call__: the hooks of the running pass sit on the block.
    out = block.forward(words.unsqueeze(1), **{name: alone(name, value) for name, value in kwargs.items()})
    return first_of(out).squeeze(1)


def first_of(out: Any) -> Tensor:
    """Returns a block's states; a few models still return a tuple."""
    states = out[0] if isinstance(out, (tuple, list)) else out
    assert isinstance(states, Tensor)
    return states
