"""Cache of the constant prefix of every text (BOS and a template's first words), computed once and reused."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class FixedPrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves this untyped
    """One block's keys and values of the prefix: a read-only cache layer.

    A normal cache stores the new keys and values of all blocks during a pass. This layer stores none, so memory does
    not grow with the number of blocks, and one prefix serves batches of every size.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of prefix and new tokens: (N, heads, prefix + new, head width) each."""
        n = key_states.shape[0]
        keys = torch.cat([self.keys.expand(n, -1, -1, -1), key_states], dim=-2)
        values = torch.cat([self.values.expand(n, -1, -1, -1), value_states], dim=-2)
        return keys, values


@dataclass(frozen=True, kw_only=True)
class PrefixStates:
    """States of the prefix for later passes.

    Shapes:
        cache: keys and values of all P prefix tokens; bos_cache: those of BOS alone. None with
            `Reading.whole_texts`.
        bos_inputs, bos_outputs: (L, D) float32, BOS's state before and after each block.
        bos_last: (D,) float32, BOS's state after the final norm.
    """

    cache: Cache | None = None
    bos_cache: Cache | None = None
    bos_inputs: Tensor
    bos_outputs: Tensor
    bos_last: Tensor


def fixed_caches(recorded: DynamicCache) -> tuple[Cache, Cache]:
    """Return read-only caches of the whole prefix and of its first token."""
    layers: list[Any] = recorded.layers
    whole = Cache(layers=[FixedPrefixLayer(layer.keys, layer.values) for layer in layers])
    first = Cache(layers=[FixedPrefixLayer(layer.keys[:, :, :1], layer.values[:, :, :1]) for layer in layers])
    return whole, first
