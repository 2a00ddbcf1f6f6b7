"""Run the first blocks of an LLM on a few tokens in several ways and compare their updates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmdiff.errors import UnsupportedLLMError
from llmdiff.language.blocks import BlockwiseLLM, run_plainly, run_rows
from llmdiff.language.lone_calls import LONES, Lone, LoneCalls, Reading
from llmdiff.language.prefix import PrefixStates
from llmdiff.language.rows import TokenRows, padded_batch
from llmdiff.language.support import EXPECTED
from llmdiff.language.tokens import PromptTokens, first_token_id

# Tolerance of a block's update: a share of its norm plus a few roundings of the state that it is added to. If a token
# attends to later ones, the difference has the size of the update.
_SHARE, _COARSE_SHARE = 0.01, 0.15
_ROUNDINGS = 8
# Attributes that number blocks and do not change their function.
_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "training"})


@dataclass(frozen=True, kw_only=True)
class TrialStates:
    """Every block's input, update, and update of each lone word; (N, D) each."""

    inputs: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    alone: list[Tensor] = field(default_factory=list)

    def rows(self, rows: Sequence[int]) -> "TrialStates":
        """Return the states of some of the words, in this order."""
        kept = list(rows)
        return TrialStates(inputs=[x[kept] for x in self.inputs], updates=[u[kept] for u in self.updates])

    def as_lone(self) -> "TrialStates":
        """Return the same states with the lone words' updates as updates."""
        return TrialStates(inputs=self.inputs, updates=self.alone)


class ReadsDifferently(UnsupportedLLMError):
    """Two ways to run the same tokens give different states."""


class _Enough(Exception):
    """Raised to stop the model after the last block that is needed."""


class ReadingTrial:
    """The first blocks of an LLM with the interface of a whole one.

    Fields:
        prefix: the states that passes use as constant prefix, whatever its ids.
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
        """Return this trial with the type of an LLM."""
        return cast(BlockwiseLLM, self)

    def prefix_states(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the prefix of the trial."""
        assert self.prefix is not None
        return self.prefix

    def run_plainly(self, ids: list[int]) -> TrialStates:
        """Run one text through the unmodified model: no cache, no batch, no lone tokens."""
        found, _ = run_plainly(self.as_llm, torch.tensor([ids]))
        inputs = [x[0].float() for x, _ in found]
        return TrialStates(
            inputs=inputs, updates=[out[0].float() - x for (_, out), x in zip(found, inputs, strict=True)]
        )

    def read(
        self,
        texts: list[list[int]],
        *,
        lone: Lone,
        joined: bool = False,
        prefix: tuple[int, ...] | None = None,
    ) -> TrialStates:
        """Run a batch of texts behind a prefix (BOS by default) as an encoding does."""
        self.reading = Reading(lone_calls=self.lone_calls, joined=frozenset(LONES if joined else ()))
        ids, mask = padded_batch([torch.tensor([0, *text]) for text in texts])  # the prefix has BOS
        tokens = PromptTokens(
            input_ids=ids,
            token_mask=mask,
            prefix_ids=(first_token_id(self.tokenizer),) if prefix is None else prefix,
            context_ids=((),) * len(texts),
        )
        found = TrialStates()

        def keep(index: int, x: Tensor, u: Tensor, v: Tensor) -> None:
            for kept, value in ((found.inputs, x), (found.updates, u), (found.alone, v)):
                kept.append(value[:-1])  # BOS is last

        run_rows(self.as_llm, TokenRows.of(tokens, self.device), tokens.prefix_ids, lone=lone, visit=keep)
        return found

    def agree(self, one: TrialStates, other: TrialStates) -> bool:
        """Return whether two sets of updates of the same words are equal up to rounding."""
        if len(one.updates) != len(other.updates):
            return False
        for found, x, expected in zip(one.updates, other.inputs, other.updates, strict=True):
            allowed = self._share * expected.norm() + self._rounding * (x + expected).norm()
            if not bool((found - expected).norm() <= allowed):
                return False
        return True

    def require(self, one: TrialStates, other: TrialStates, what: str) -> None:
        """Raise an UnsupportedLLMError with the text `what` unless two sets of updates agree."""
        if not self.agree(one, other):
            raise ReadsDifferently(f"{self.id} ({type(self._llm.model).__name__}) {what}; {EXPECTED}")

    def text_model(self, **inputs: Any) -> Any:
        """Run the model up to the last block of the trial."""
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
    """Return the number of first blocks that contain every kind of block: every set of submodules and settings."""
    config = llm.model.config.get_text_config(decoder=True)
    if getattr(config, "num_hidden_layers", None) != len(llm.blocks):
        return len(llm.blocks)  # blocks may be run twice or not at all
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
    """Return the submodules of a block with their plain attributes."""
    plain = (bool, int, float, str, type(None))
    return [
        (
            name,
            type(part),
            *((k, v) for k, v in vars(part).items() if isinstance(v, plain) and k not in _NUMBERS),
        )
        for name, part in block.named_modules()
    ]
