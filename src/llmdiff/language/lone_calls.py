"""A block called on tokens alone: in one call with the text, so that its weights are read once, or in its own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llmdiff.language.readings import LoneCalls
from llmdiff.language.rows import SharedInputs, TokenRows

# What blocks call the mask of their attention.
_MASKS = ("attention_mask", "mask", "causal_mask")
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
        if name in _MASKS:
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
    block: nn.Module,
    x: Tensor,
    kwargs: dict[str, Any],
    rows: TokenRows,
    *,
    lone_calls: LoneCalls,
    sees_bos: bool,
    bos_cache: Cache | None,
) -> Tensor:
    """Returns the block's output for every token as a text of its own: states (R, S, D) of a run => (N, D).

    See `Reading` for the ways to call it.

    Raises:
        ValueError: the block is given something that does not belong to one token each.
    """
    if lone_calls == "masked":
        return rows.of_run(call_masked(block, x, kwargs, sees_bos=sees_bos))
    # In a sequence the text's own first token is BOS.
    starts = sees_bos and lone_calls == "sequences"
    cache = bos_cache if sees_bos and not starts else None

    def cut(value: Tensor) -> Tensor:
        own = rows.of_run_shared(value).unsqueeze(1)
        return torch.cat([rows.for_every_prompt(value)[:1, :1].expand_as(own), own], dim=1) if starts else own

    def alone(name: str, value: Any) -> Any:
        if isinstance(value, Cache):
            return cache
        if name in _MASKS and isinstance(value, Tensor) and value.ndim == 4:
            return _mask_of_texts(value, 1 + starts, 1 + sees_bos).expand(rows.words, -1, -1, -1)
        if name == "use_cache":
            return cache is not None
        if isinstance(value, Mapping):
            return {}  # what blocks hand on to each other
        if isinstance(value, tuple):
            return tuple(alone("", item) for item in value)
        if rows.by_token(value):
            # Rotary tables, position ids, per-layer inputs: every token keeps its own row.
            return cut(value)
        if isinstance(value, Tensor) and value.ndim > 1:
            raise ValueError(f"{type(block).__name__} is given {name}, which has no row for each token")
        return value

    words = rows.of_run(x).unsqueeze(1)
    states = torch.cat([x[:1, :1].expand_as(words), words], dim=1) if starts else words
    # forward, not __call__: the hooks of the running pass sit on the block.
    return first_of(block.forward(states, **{name: alone(name, value) for name, value in kwargs.items()}))[
        :, -1
    ]


def call_masked(block: nn.Module, x: Tensor, kwargs: dict[str, Any], *, sees_bos: bool) -> Tensor:
    """Returns the block's output for every token of whole texts that sees itself (and the first): (R, S, D).

    What blocks hand on to each other is what the text's own pass made of it.
    """
    place = torch.arange(x.shape[1], device=x.device)
    visible = place[:, None] == place
    if sees_bos:
        visible |= place == 0
    changed: dict[str, Any] = {
        name: dict(value) for name, value in kwargs.items() if isinstance(value, Mapping)
    }
    name = next((name for name in _MASKS if name in kwargs), _MASKS[0])
    given = kwargs.get(name)
    if given is None or given.ndim != 4:
        changed[name] = visible[None, None]
    else:
        # The first token sees itself.
        shown = given[..., :1, :1]
        if given.dtype == torch.bool:
            changed[name] = torch.where(visible, shown, ~shown)
        else:
            # Positions may be part of it; a sliding window is not wanted.
            hidden = torch.finfo(given.dtype).min
            changed[name] = torch.where(visible, torch.where(given > hidden / 2, given, shown), hidden)
    return first_of(block.forward(x, **{**kwargs, **changed}))


def _mask_of_texts(given: Tensor, queries: int, keys: int) -> Tensor:
    """A causal mask for texts of so few tokens, in the terms of the mask that a block was given."""
    visible = torch.ones(queries, keys, dtype=torch.bool, device=given.device).tril(keys - queries)[
        None, None
    ]
    if given.dtype == torch.bool:
        # The first token sees itself; a window may hide what is before it.
        own = given.shape[-1] - given.shape[-2]
        return visible == given[:1, :1, :1, own : own + 1]
    return given.new_zeros(visible.shape).masked_fill_(~visible, torch.finfo(given.dtype).min)


def first_of(out: Any) -> Tensor:
    """Returns a block's states; many models return a tuple.

    Raises:
        ValueError: there are several states for each token.
    """
    several = isinstance(out, (tuple, list))
    states = out[0] if several else out
    others = [part.shape for part in (out[1:] if several else ()) if isinstance(part, Tensor)]
    if not isinstance(states, Tensor) or states.ndim != 3 or states.shape in others:
        raise ValueError("a block hands on several states for each token, expected one")
    return states
