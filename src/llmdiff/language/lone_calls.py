"""Call a block on lone tokens: in one call with the text, so that its weights are read once, or separately."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llmdiff.language.rows import SharedInputs, TokenRows

Lone = Literal["token", "token+bos"]
LONES: tuple[Lone, ...] = get_args(Lone)

LoneCalls = Literal["cached", "masked", "sequences"]
# Ordered by cost, the cheapest first.
LONE_CALLS: tuple[LoneCalls, ...] = get_args(LoneCalls)

# Names of the argument for the attention mask.
_MASKS = ("attention_mask", "mask", "causal_mask")
# Attention implementations that take arbitrary masks.
_WITH_MASKS = ("sdpa", "eager")
# With many tokens the weights are read once for all of them anyway, and the larger tensors cost more than is saved. On
# 2 cores joined calls took 0.6 of the time for a prompt of 5 to 10 words, 0.7 for 20, 0.93 for 8 prompts of 40, 1.06
# for 32 of 20.
_MAX_TOKENS = 768
# Attention is dense over text and lone tokens: in one long text it costs more than is saved.
MAX_KEYS = 512


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the blocks of an LLM are called, found by trial when it is loaded.

    Fields:
        lone_calls: how a block is called on lone tokens.
            "cached": one token per call, with the keys and values of BOS if it attends to BOS. All texts share the
            keys and values of their constant prefix. For attention whose arguments have a row for each token.
            "masked": the whole text again, under a mask that hides the other tokens. For attention with other
            arguments from outside the block: ALiBi biases, keys and values of another block.
            "sequences": every token as a separate text, after BOS if it attends to BOS, from an initial state. For
            blocks with a recurrent state: recurrence, linear attention, convolutions.
        joined: values of `lone` that may be computed in one call with the text, whatever its length.
    """

    lone_calls: LoneCalls = "cached"
    joined: frozenset[Lone] = frozenset()

    @property
    def whole_texts(self) -> bool:
        """Return whether every text is run from its first token, because its prefix cannot be cached."""
        return self.lone_calls != "cached"


class JoinedCall:
    """Append the lone tokens to the text in the input of every block, and split the output again.

    The lone tokens follow the text as further positions, and the mask lets each attend only to itself (and BOS). Only
    attention mixes tokens, so each lone token gets the same result as in a separate call.

    Shapes: B prompts of S positions behind a prefix of P keys, N words; every prompt takes K of the lone tokens.
    """

    def __init__(self, rows: TokenRows, prefix_length: int, *, sees_bos: bool) -> None:
        batch, self._steps = rows.run_ids.shape
        self._rows, self._prefix, self._sees_bos = rows, prefix_length, sees_bos
        self._each = -(-rows.words // batch)
        # Fill the last prompt's places with the first word.
        spare = batch * self._each - rows.words
        places = torch.arange(rows.words, device=rows.run_places.device)
        self._order = torch.cat([places, places.new_zeros(spare)])
        self._shared = SharedInputs()

    @classmethod
    def of(cls, llm: Any, rows: TokenRows, prefix_length: int, *, sees_bos: bool) -> "JoinedCall | None":
        """Return the joined call of a pass; None if separate calls are required or cheaper."""
        if rows.words == 0 or llm.model.config._attn_implementation not in _WITH_MASKS:
            return None
        made = cls(rows, prefix_length, sees_bos=sees_bos)
        tokens = rows.run_ids.shape[0] * (made._steps + made._each)
        return made if tokens <= _MAX_TOKENS and made._keys <= MAX_KEYS else None

    @property
    def _keys(self) -> int:
        """Return P + S + K."""
        return self._prefix + self._steps + self._each

    def inputs(self, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the block's arguments with the lone tokens appended: states (B, S, D) => (B, S + K, D)."""
        extended = {name: self._extended(name, value, x) for name, value in kwargs.items()}
        return self._with_lone(x), extended

    def outputs(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of the text and of the lone tokens: (B, S + K, D) => (B, S, D), (N, D)."""
        text, lone = out[:, : self._steps], out[:, self._steps :]
        return text, lone.flatten(0, 1)[: self._rows.words]

    def _extended(self, name: str, value: Any, x: Tensor) -> Any:
        if name in _MASKS:
            return self._shared.of(value, lambda: self._mask(value, x))
        if isinstance(value, tuple):
            return tuple(self._extended("", item, x) for item in value)
        if self._rows.by_token(value):
            # Rotary tables, position ids, per-layer inputs: every token keeps its own row.
            text = self._rows.for_every_prompt(value)
            return self._shared.of(value, lambda: self._with_lone(text))
        return value

    def _with_lone(self, text: Tensor) -> Tensor:
        lone = self._rows.of_run(text).index_select(0, self._order.to(text.device))
        return torch.cat([text, lone.reshape(text.shape[0], self._each, *lone.shape[1:])], dim=1)

    def _mask(self, text: Tensor | None, x: Tensor) -> Tensor:
        """Return the text's mask (None: causal) extended by the rows and columns of the lone tokens."""
        steps, keys, behind = self._steps, self._keys, self._prefix + self._steps
        batch = 1 if text is None else text.shape[0]
        visible = torch.zeros(batch, 1, steps + self._each, keys, dtype=torch.bool, device=x.device)
        visible[:, :, :steps, :behind] = torch.ones(steps, behind, device=x.device).tril(self._prefix).bool()
        visible[:, :, steps:, behind:] = torch.eye(self._each, device=x.device).bool()
        if self._sees_bos:
            visible[:, :, steps:, 0] = True
        if text is None:
            return visible
        mask = visible if text.dtype == torch.bool else _added(visible, text)
        mask[:, :, :steps, :behind] = text
        return mask


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
    """Return the block's output for every token as a separate text.

    See `Reading` for the values of `lone_calls`.

    Shapes:
        x: (R, S, D) => (N, D).
    Raises:
        ValueError: an argument of the block cannot be split by tokens.
    """
    if lone_calls == "masked":
        return rows.of_run(call_masked(block, x, kwargs, sees_bos=sees_bos))
    # With "sequences" the text's first token is BOS.
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
            return {}  # state that blocks pass to later blocks
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
    given = {name: alone(name, value) for name, value in kwargs.items()}
    # forward, not __call__: the hooks of the running pass are registered on the block.
    return first_of(block.forward(states, **given))[:, -1]


def call_masked(block: nn.Module, x: Tensor, kwargs: dict[str, Any], *, sees_bos: bool) -> Tensor:
    """Return the block's output for whole texts whose tokens attend only to themselves (and the first token).

    State that blocks pass to later blocks is taken from the pass over the text.

    Shapes:
        x: (R, S, D) => (R, S, D).
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
        # The first token attends to itself, so this entry means "visible".
        shown = given[..., :1, :1]
        if given.dtype == torch.bool:
            changed[name] = torch.where(visible, shown, ~shown)
        else:
            # Keep biases of positions (ALiBi), but not the limits of a sliding window.
            hidden = torch.finfo(given.dtype).min
            changed[name] = torch.where(visible, torch.where(given > hidden / 2, given, shown), hidden)
    return first_of(block.forward(x, **{**kwargs, **changed}))


def _mask_of_texts(given: Tensor, queries: int, keys: int) -> Tensor:
    """Return a causal mask for short texts in the convention (bool or additive) of the mask `given`."""
    visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=given.device).tril(keys - queries)
    if given.dtype == torch.bool:
        # The entry of the first token for itself means "visible"; a window may hide earlier ones.
        own = given.shape[-1] - given.shape[-2]
        return visible == given[:1, :1, :1, own : own + 1]
    return _added(visible, given)


def _added(visible: Tensor, like: Tensor) -> Tensor:
    """Return a mask of bool as one that is added to the logits."""
    return like.new_zeros(visible.shape).masked_fill_(~visible, torch.finfo(like.dtype).min)


def first_of(out: Any) -> Tensor:
    """Return the states in a block's output, which may be a tuple; a ValueError if each token has several."""
    several = isinstance(out, (tuple, list))
    states = out[0] if several else out
    others = [part.shape for part in (out[1:] if several else ()) if isinstance(part, Tensor)]
    if not isinstance(states, Tensor) or states.ndim != 3 or states.shape in others:
        raise ValueError("a block returns several states for each token, expected one")
    return states
