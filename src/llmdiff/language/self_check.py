"""Check when an LLM is loaded that different ways to run its blocks give the same states.

A list of classes cannot cover every configuration and every model's own code. So each LLM is tested on a few tokens:
the states of a text must be the same alone, in a batch, with more text after it and with a cached prefix, and those of
a lone token must be the same in a separate call and beside a text.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llmdiff.errors import ConfigError, CorruptWeightsError, UnsupportedLLMError
from llmdiff.language.blocks import BlockwiseLLM, run_plainly, run_prefix
from llmdiff.language.lone_calls import LONE_CALLS, LONES, MAX_KEYS, Reading, call_masked
from llmdiff.language.prefix import FixedPrefixLayer
from llmdiff.language.reading_trial import ReadingTrial, ReadsDifferently, TrialStates
from llmdiff.language.support import whatever_fails_is_unsupported
from llmdiff.language.tokens import first_token_id

_TEXT = "a red cat and two blue dogs in the snow"
_WORDS, _FEW = 4, 2


def check_reading(llm: BlockwiseLLM) -> Reading:
    """Return the cheapest way to call the LLM's blocks on lone tokens in which all states agree.

    Only the first blocks are run, up to the last new kind of block. Nothing is cached, and no random number is drawn.

    Raises:
        UnsupportedLLMError: every way raises an error or gives different states for the same tokens.
    """
    reason: UnsupportedLLMError | None = None
    for lone_calls in LONE_CALLS:
        try:
            with whatever_fails_is_unsupported(llm.model, id=llm.id), torch.no_grad(), llm.placement.in_use():
                return _check(ReadingTrial(llm, lone_calls), first_token_id(llm.tokenizer), _words(llm))
        except (
            ConfigError,
            CorruptWeightsError,
        ):  # states are not finite: encoding a prompt raises the error
            return Reading(lone_calls=lone_calls)
        except UnsupportedLLMError as error:
            # Report the error of the last way, which has the fewest requirements, unless an earlier one says that
            # states of whole texts differ.
            if not (isinstance(reason, ReadsDifferently) and lone_calls == "sequences"):
                reason = error
    assert reason is not None
    raise reason


def _check(trial: ReadingTrial, bos: int, words: list[int]) -> Reading:
    few = words[:_FEW]
    whole = trial.run_plainly([bos, *words])
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
        # The context of a first word is BOS and itself, so it must equal "token+bos".
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


def _check_masks(trial: ReadingTrial, ids: list[int]) -> None:
    """Raise an UnsupportedLLMError unless a mask hides all other tokens from each token, but not a distant BOS."""
    nowhere, even, odd = slice(0, 0), slice(0, None, 2), slice(1, None, 2)

    def on_block(
        index: int, block: nn.Module, x: Tensor, out: Tensor, kwargs: dict[str, Any], _: Any
    ) -> None:
        def alone(changed: slice = nowhere, *, sees_bos: bool) -> Tensor:
            handed = {name: value for name, value in kwargs.items() if isinstance(value, Mapping)}
            states, given = _changed(x, changed), _changed(handed, changed)
            found = call_masked(block, states, {**kwargs, **given}, sees_bos=sees_bos)
            update: Tensor = (found - states)[0].float()
            return update

        for kept, others in ((even, odd), (odd, even)):
            one, other = (
                TrialStates(inputs=[x[0, kept].float()], updates=[alone(changed, sees_bos=False)[kept]])
                for changed in (nowhere, others)
            )
            trial.require(other, one, "reads a token alone differently beside other tokens")
        if torch.equal(alone(slice(0, 1), sees_bos=True)[-1], alone(sees_bos=True)[-1]):
            raise UnsupportedLLMError(f"{trial.id} does not let a token see BOS {len(ids)} tokens before it")

    run_plainly(trial.as_llm, torch.tensor([ids]), on_block=on_block)


def _changed(value: Any, places: slice) -> Any:
    """Return block arguments with other states at these positions of the text."""
    if isinstance(value, Mapping):
        return {name: _changed(part, places) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_changed(part, places) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    changed = value.clone()
    changed[..., places, :] = value[..., places, :].flip(-1)  # (B, S, D), or (B, heads, S, head width)
    return changed


def _room(trial: ReadingTrial, words: list[int]) -> int:
    """Return the largest number of tokens before the words in a joined call."""
    return min(MAX_KEYS, trial.max_positions or MAX_KEYS) - 2 * len(words)


def _bos_is_in_reach(trial: ReadingTrial, words: list[int]) -> bool:
    """Return whether tokens attend to BOS over the largest distance in a joined call; sliding windows may hide it."""
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
    except (IndexError, RuntimeError):  # the LLM has fewer positions than its configuration says
        return False
    return trial.agree(joined.as_lone(), own.as_lone())


def _words(llm: BlockwiseLLM) -> list[int]:
    """Return the ids of a few tokens, at most as many as the LLM has positions."""
    found = [int(token) for token in llm.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]]
    return (found * _WORDS)[: max(2, min(_WORDS, (llm.max_positions or _WORDS + 1) - 1))]
