"""Reads a few tokens of an LLM in several ways when it is loaded, and refuses it where they do not agree.

No list of classes can say what a configuration or a model's own code does. So every LLM has to show that the start of
a text is read alike alone, in a batch, with more text behind it and with what stands before it remembered, and that a
token alone is read alike in a call of its own and beside a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llmdiff.errors import ConfigError, CorruptWeightsError, UnsupportedLLMError
from llmdiff.language.blocks import BlockwiseLLM, run_plainly, run_prefix, run_rows
from llmdiff.language.lone_calls import MAX_KEYS, call_masked
from llmdiff.language.prefix import FixedPrefixLayer, PrefixStates
from llmdiff.language.readings import LONE_CALLS, LONES, Lone, LoneCalls, Reading
from llmdiff.language.rows import TokenRows
from llmdiff.language.support import EXPECTED, whatever_fails_is_unsupported
from llmdiff.language.tokens import PromptTokens, first_token_id

_TEXT = "a red cat and two blue dogs in the snow"
_WORDS, _FEW = 4, 2
# What two readings of a block's update may differ by: a share of it, and a few roundings of the state that it is added
# to. Where a token sees what follows it, the difference is of the size of the update.
_SHARE, _COARSE_SHARE = 0.01, 0.15
_ROUNDINGS = 8
# Attributes that number blocks and say nothing of what they compute.
_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "training"})


def check_reading(llm: BlockwiseLLM) -> Reading:
    """Return how the LLM is read: the first way to call blocks on tokens alone in which all readings agree.

    Blocks are read until every kind of block has been; nothing is remembered, and no random number is drawn.

    Raises:
        UnsupportedLLMError: in every way, a pass ends in an error, or two readings of the same tokens do not agree.
    """
    reason: UnsupportedLLMError | None = None
    for lone_calls in LONE_CALLS:
        try:
            with whatever_fails_is_unsupported(llm.model, id=llm.id), torch.no_grad(), llm.placement.in_use():
                return _check(_Trial(llm, lone_calls), first_token_id(llm.tokenizer), _words(llm))
        except (ConfigError, CorruptWeightsError):  # states not finite: named where a prompt is encoded
            return Reading(lone_calls=lone_calls)
        except UnsupportedLLMError as error:
            # That of the last way, which asks least of a block; readings of whole texts that differ say more.
            if not (isinstance(reason, _ReadsDifferently) and lone_calls == "sequences"):
                reason = error
    assert reason is not None
    raise reason


def _check(trial: "_Trial", bos: int, words: list[int]) -> Reading:
    few = words[:_FEW]
    whole = trial.read_plainly([bos, *words])
    plain = whole.rows(range(1, 1 + len(words)))
    trial.prefix = run_prefix(trial.as_llm, (bos,))
    own = trial.read([words, few], lone="token")
    start_of_texts = plain.rows([*range(len(words)), *range(len(few))])
    trial.require(
        own, start_of_texts, "reads a text differently alone and in a batch, or when more text follows"
    )
    cached = trial.lone_calls == "cached"
    if cached:
        joined = trial.read([words, few], lone="token", joined=True)
        trial.require(joined, start_of_texts, "reads a text differently with lone tokens beside it")
        trial.require(
            joined.as_lone(),
            own.as_lone(),
            "reads a token alone differently in a call of its own and beside a text",
        )
    for beside in (False, True) if cached else (False,):
        one = trial.read([words[:1]], lone="token+bos", joined=beside)
        trial.require(one, plain.rows([0]), "reads a text differently when more text follows")
        # The context of a first word is BOS and itself, which is what "token+bos" means.
        trial.require(
            one.as_lone(),
            plain.rows([0]),
            "reads a token alone with BOS differently than as the first word of a text",
        )
    if cached:
        return Reading(joined=frozenset(LONES if _bos_is_in_reach(trial, few) else ("token",)))
    first = trial.read([[bos, *words]], lone="token", prefix=())
    trial.require(
        first.as_lone().rows([0]),
        whole.rows([0]),
        "reads a token alone differently than as the first token of a text",
    )
    if trial.lone_calls == "masked":
        _check_masks(trial, [bos, *words * (_room(trial, words) // len(words))])
    return Reading(lone_calls=trial.lone_calls)


def _check_masks(trial: "_Trial", ids: list[int]) -> None:
    """Return None if a mask hides all other tokens from each one, and shows it BOS from afar.

    Raises:
        UnsupportedLLMError: it does not.
    """

    def on_block(
        index: int, block: nn.Module, x: Tensor, out: Tensor, kwargs: dict[str, Any], _: Any
    ) -> None:
        def alone(changed: slice | None = None, *, sees_bos: bool) -> Tensor:
            handed = {name: value for name, value in kwargs.items() if isinstance(value, Mapping)}
            states, given = (
                (x, handed) if changed is None else (_changed(x, changed), _changed(handed, changed))
            )
            update = call_masked(block, states, {**kwargs, **given}, sees_bos=sees_bos) - states
            return update[0].float()

        for kept, others in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            one, other = (
                _Reading(inputs=[x[0, kept].float()], updates=[alone(changed, sees_bos=False)[kept]])
                for changed in (None, others)
            )
            trial.require(other, one, "reads a token alone differently beside other tokens")
        if torch.equal(alone(slice(0, 1), sees_bos=True)[-1], alone(sees_bos=True)[-1]):
            raise UnsupportedLLMError(f"{trial.id} does not let a token see BOS {len(ids)} tokens before it")

    run_plainly(trial.as_llm, torch.tensor([ids]), on_block=on_block)


def _changed(value: Any, places: slice) -> Any:
    """Other states at these places of a text, in what blocks take and hand on to each other."""
    if isinstance(value, Mapping):
        return {name: _changed(part, places) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_changed(part, places) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    changed = value.clone()
    changed[..., places, :] = value[..., places, :].flip(-1)  # (B, S, D), or (B, heads, S, head width)
    return changed


def _room(trial: "_Trial", words: list[int]) -> int:
    """How many tokens may stand before a few words in a joined call."""
    return min(MAX_KEYS, trial.max_positions or MAX_KEYS) - 2 * len(words)


def _bos_is_in_reach(trial: "_Trial", words: list[int]) -> bool:
    """Whether blocks let a token see BOS from as far behind it as a joined call may put one: windows may be theirs."""
    room = _room(trial, words)
    if room < 1:
        return True
    near = trial.prefix
    assert near is not None
    assert near.bos_cache is not None
    layers: list[Any] = near.bos_cache.layers
    far: list[Any] = [
        FixedPrefixLayer(*(part.expand(-1, -1, room, -1) for part in (x.keys, x.values))) for x in layers
    ]
    trial.prefix = replace(near, cache=Cache(layers=far))
    try:
        joined, own = (
            trial.read([words], lone="token+bos", joined=joined, prefix=(0,) * room)
            for joined in (True, False)
        )
    except (IndexError, RuntimeError):  # it has fewer positions than its configuration says
        return False
    return trial.agree(joined.as_lone(), own.as_lone())


def _words(llm: BlockwiseLLM) -> list[int]:
    """The ids of a few tokens, not more than the LLM has positions for."""
    found = [int(token) for token in llm.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]]
    return (found * _WORDS)[: max(2, min(_WORDS, (llm.max_positions or _WORDS + 1) - 1))]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What every block made of the words: its input, its update, and its update of each word alone; (N, D) each."""

    inputs: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    alone: list[Tensor] = field(default_factory=list)

    def rows(self, rows: Sequence[int]) -> "_Reading":
        """Return some of the words, in this order."""
        kept = list(rows)
        return _Reading(inputs=[x[kept] for x in self.inputs], updates=[u[kept] for u in self.updates])

    def as_lone(self) -> "_Reading":
        """Return the updates of the words alone as the updates."""
        return _Reading(inputs=self.inputs, updates=self.alone)


class _ReadsDifferently(UnsupportedLLMError):
    """Two readings of the same tokens do not agree."""


class _Enough(Exception):
    """Every kind of block has been read."""


class _Trial:
    """An LLM of the first blocks only, as a pass takes it, with a prefix of its own.

    Fields:
        prefix: what passes take for the constant start of a text.
    """

    def __init__(self, llm: BlockwiseLLM, lone_calls: LoneCalls) -> None:
        self._llm: Any = llm
        self.lone_calls = lone_calls
        self.num_blocks = _blocks_of_every_kind(llm)
        self.blocks = nn.ModuleList(list(llm.blocks)[: self.num_blocks])
        self.reading = Reading(lone_calls=lone_calls)
        self.prefix: PrefixStates | None = None
        quantised = getattr(llm.model, "hf_quantizer", None) is not None
        exact = torch.get_float32_matmul_precision() == "highest"
        coarse = quantised or llm.dtype.itemsize < 4 or not exact
        self._share = _COARSE_SHARE if coarse else _SHARE
        self._rounding = _ROUNDINGS * torch.finfo(torch.bfloat16 if coarse else torch.float32).eps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    @property
    def as_llm(self) -> BlockwiseLLM:
        """This trial, for what takes an LLM."""
        return cast(BlockwiseLLM, self)

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the prefix of this trial."""
        assert self.prefix is not None
        return self.prefix

    def read_plainly(self, ids: list[int]) -> _Reading:
        """Read one text as the model itself does: nothing remembered, batched or beside it."""
        found, _ = run_plainly(self.as_llm, torch.tensor([ids]))
        inputs = [x[0].float() for x, _ in found]
        return _Reading(
            inputs=inputs, updates=[out[0].float() - x for (_, out), x in zip(found, inputs, strict=True)]
        )

    def read(
        self,
        texts: list[list[int]],
        *,
        lone: Lone,
        joined: bool = False,
        prefix: tuple[int, ...] | None = None,
    ) -> _Reading:
        """Read a batch of texts behind a prefix, BOS if there is none given, as an encoding does."""
        self.reading = Reading(lone_calls=self.lone_calls, joined=frozenset(LONES if joined else ()))
        ids = torch.zeros(len(texts), 1 + max(map(len, texts)), dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, 1 : 1 + len(text)] = torch.tensor(text)
            mask[row, : 1 + len(text)] = True
        tokens = PromptTokens(
            input_ids=ids,
            token_mask=mask,
            prefix_ids=(first_token_id(self.tokenizer),) if prefix is None else prefix,
            context_ids=((),) * len(texts),
        )
        found = _Reading()

        def keep(index: int, x: Tensor, u: Tensor, v: Tensor | None) -> None:
            assert v is not None
            for kept, value in ((found.inputs, x), (found.updates, u), (found.alone, v)):
                kept.append(value[:-1])  # BOS is last

        run_rows(self.as_llm, TokenRows.of(tokens, self.device), tokens.prefix_ids, lone=lone, visit=keep)
        return found

    def agree(self, one: _Reading, other: _Reading) -> bool:
        """Return whether two readings of the same words are the same but for rounding."""
        if len(one.updates) != len(other.updates):
            return False
        for found, x, expected in zip(one.updates, other.inputs, other.updates, strict=True):
            allowed = self._share * expected.norm() + self._rounding * (x + expected).norm()
            if not bool((found - expected).norm() <= allowed):
                return False
        return True

    def require(self, one: _Reading, other: _Reading, what: str) -> None:
        """Return None if two readings agree.

        Raises:
            UnsupportedLLMError: they do not; says `what`.
        """
        if not self.agree(one, other):
            raise _ReadsDifferently(f"{self.id} ({type(self._llm.model).__name__}) {what}; {EXPECTED}")

    def text_model(self, **inputs: Any) -> Any:
        """Run the model up to the blocks that are not read."""
        model, blocks = self._llm.text_model, self._llm.blocks
        if self.num_blocks == len(blocks):
            return model(**inputs)

        def stop(*_: Any) -> None:
            raise _Enough

        handle = blocks[self.num_blocks].register_forward_pre_hook(stop)
        try:
            return model(**inputs)
        except _Enough:
            ids = inputs["input_ids"]
            return SimpleNamespace(last_hidden_state=torch.zeros(*ids.shape, 1, device=ids.device))
        finally:
            handle.remove()


def _blocks_of_every_kind(llm: BlockwiseLLM) -> int:
    """How many blocks to read until there is none of another kind left: other parts, or other settings of them."""
    config = llm.model.config.get_text_config(decoder=True)
    if getattr(config, "num_hidden_layers", None) != len(llm.blocks):
        return len(llm.blocks)  # some may be run twice, or not at all
    types = getattr(config, "layer_types", None) or ()
    seen: set[Any] = set()
    last = 0
    for index, block in enumerate(llm.blocks):
        kind = (types[index] if index < len(types) else None, *_settings(block))
        if kind not in seen:
            seen.add(kind)
            last = index
    return last + 1


def _settings(block: nn.Module) -> list[Any]:
    """The parts of a block with their settings."""
    plain = (bool, int, float, str, type(None))
    return [
        (
            name,
            type(part),
            *((k, v) for k, v in vars(part).items() if isinstance(v, plain) and k not in _NUMBERS),
        )
        for name, part in block.named_modules()
    ]
