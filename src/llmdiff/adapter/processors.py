"""The parts shared by all attached layers: the new branch and the base class.

The layer keeps its attention processor. A processor that is set before or while the LLM is attached (attention
slicing, an IP-Adapter) computes the pretrained branch, and is still set after detaching.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from llmdiff.adapter.layers import heads_of
from llmdiff.adapter.masks import as_bias, may_keep

_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class KeysValues:
    """Text states as inputs of an attention: keys and values (B, heads, T, head width), mask (B, 1, 1, T).

    If a processor computes the attention, keys and values are the states themselves.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class CrossAttentionBranch(nn.Module):
    """The new, trainable half of one cross-attention layer, with the gates of both halves.

    Shapes:
        image states (B, N, query_dim) => (B, N, out_dim); text states (B, T, D).

    Source: Dong et al. 2024 (arXiv 2502.04412), the adapter's cross-attention with gates a*exp(b).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        query_dim: int,
        inner_dim: int,
        heads: int,
        out_dim: int,
        query_bias: bool,
        out_bias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=query_bias)
        # No bias: a zero row (padding) then has zero key and value, whatever the weights.
        self.to_k = nn.Linear(hidden_size, inner_dim, bias=False)
        self.to_v = nn.Linear(hidden_size, inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, out_dim, bias=out_bias)
        # Shape (1,): FSDP cannot shard a tensor without dimensions.
        self.a1, self.b1 = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.a2, self.b2 = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def gates(self) -> tuple[Tensor, Tensor]:
        """Return (a1*exp(b1), a2*exp(b2)): the weights of the pretrained and of the new half, each ()."""
        # Without dimensions, so that a gate in float32 leaves the dtype of what it multiplies as it is.
        return (self.a1 * self.b1.exp()).squeeze(0), (self.a2 * self.b2.exp()).squeeze(0)

    def attend(
        self, hidden_states: Tensor, text: KeysValues, *, norm: Any = None, backend: Any = None
    ) -> Tensor:
        """Return Attn(q(z), k(c), v(c)) through the branch's own output; `norm` is the layer's query norm."""
        query = heads_of(self.to_q(hidden_states), self.heads, norm)
        result: Tensor = self.to_out(attention(query, text, backend=backend))
        return result

    def read(self, states: Tensor, mask: Tensor | None) -> KeysValues:
        """Return k(c) and v(c) by heads."""
        return KeysValues(
            heads_of(self.to_k(states), self.heads), heads_of(self.to_v(states), self.heads), mask
        )


def attention(query: Tensor, text: KeysValues, *, scale: float | None = None, backend: Any = None) -> Tensor:
    """Return the attention of queries (B, heads, N, width) to the text, (B, N, heads * width).

    `backend` is one of diffusers' attention backends; None: the active one.
    """
    # diffusers has heads after rows.
    rows = (states.transpose(1, 2) for states in (query, text.key, text.value))
    mixed: Tensor = dispatch_attention_fn(*rows, attn_mask=text.mask, scale=scale, backend=backend)
    return mixed.flatten(2)


class AttachedLayer(ABC):
    """Base of the attached layers: replaces a layer's forward; its branch may be a copy on another device.

    Deliberately not an `nn.Module`: as a submodule it would become part of the denoiser's state dict, and a
    pipeline saved while attached would no longer be the base pipeline.
    """

    def __init__(self, attn: Any, branch: CrossAttentionBranch | None, *, scale: float) -> None:
        self.attn = attn
        self._forward = type(attn).forward
        self.branch = branch
        self.scale = scale
        # Set when installed: the installation, and the instance's previous forward (accelerate's hooks).
        self.installation: Any = None
        self.replaced: Any = None
        # Set when text from an attached `encode_prompt` arrives, see `Installation.read`.
        self.read = False
        self._kept: Any = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        # Copies start with an empty cache: the copied layer has other weights and reads other tensors.
        return {**self.__dict__, "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = WeakTensorKeyDictionary()

    @property
    def backend(self) -> Any:
        """Return the attention backend of the layer's processor, set by `set_attention_backend`."""
        return getattr(getattr(self.attn, "processor", None), "_attention_backend", None)

    @property
    def reads_bias(self) -> bool:
        """Return whether torch's own attention computes the layer; other backends take masks of bool only."""
        backend = self.backend or _AttentionBackendRegistry.get_active_backend()[0]
        return bool(backend == AttentionBackendName.NATIVE)

    def biased(self, text: KeysValues) -> KeysValues:
        """Return the text with its mask as a bias, which torch's attention would make of it anew in every call."""
        if text.mask is None or not self.reads_bias:
            return text
        return replace(text, mask=as_bias(text.mask, text.key.dtype))

    def kept(self, source: Tensor | None, weights: tuple[Tensor, ...], read: Callable[[], _Kept]) -> _Kept:
        """Return `read()`, cached for as long as the text tensor `source` lives and no weight changes.

        Nothing is cached without a source, for inference tensors, which have no version counter, and with gradients.
        """
        if source is None or not may_keep() or source.is_inference():
            return read()
        if self.branch is not None:
            branch = self.branch
            own = (branch.to_k.weight, branch.to_v.weight, branch.a1, branch.b1, branch.a2, branch.b2)
            weights = (*weights, *own)
        stamp = (
            source._version,
            type(getattr(self.attn, "processor", None)),
            self.reads_bias,
            *((id(weight), -1 if weight.is_inference() else weight._version) for weight in weights),
        )
        kept = self._kept.get(source)
        if kept is None or kept[0] != stamp:
            kept = (stamp, read())
            self._kept[source] = kept
        result: _Kept = kept[1]
        return result

    def note_reading(self) -> None:
        """Set `read`, which drawing asks for; not in a compiled training step, as checkpoints allow no side effect."""
        if not (torch.is_grad_enabled() and torch.compiler.is_compiling()):
            self.read = True

    def check(self) -> None:  # noqa: B027
        """Check that the layer's current processor is supported; by default all are."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output."""

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the layer's original forward."""
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return self._forward(self.attn, *args, **kwargs)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the branch to the denoiser's device and dtype.

        A branch elsewhere is copied, not moved, because other pipelines may share the adapter.
        """
        if self.branch is None:
            return
        weight = self.branch.to_q.weight
        # "cuda" means the current GPU, which weights report with its number.
        elsewhere = weight.device.type != device.type or device.index not in (None, weight.device.index)
        if elsewhere or weight.dtype != dtype:
            self.branch = copy.deepcopy(self.branch).to(device=device, dtype=dtype)
