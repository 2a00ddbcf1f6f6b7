"""Compare two adapters on two LLMs: encodings of the same characters, and outputs of the attention layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.installation import install
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff.language.alignment import shared_characters, token_spans
from llmdiff.language.cache import EncodingCache
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.warm_start import BaseQueries, Target

_TOGETHER = 16


@dataclass(frozen=True)
class AdapterPair:
    """An old and a new controller, and the stores of their encodings."""

    old: LLMController
    new: LLMController
    stores: tuple[EncodingCache, EncodingCache]

    @torch.no_grad()
    def aligned(self, captions: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield n' and n of the same characters, for every token of the new LLM that shares characters with the old.

        Shapes: (N, D'), (N, D).
        """
        how: Any = self.old.adapter.config
        read = {"template": how.template, "max_length": how.max_length}
        for start in range(0, len(captions), _TOGETHER):
            part = list(captions[start : start + _TOGETHER])
            spans = [token_spans(llm_of(one), part, **read) for one in (self.old, self.new)]
            states = []
            for one, store in zip((self.old, self.new), self.stores, strict=True):
                norm = one.adapter.norm
                states.append(norm(store.batch(part).states.to(norm.weight)).double())
            for row, text in enumerate(part):
                before, after = spans[0][row], spans[1][row]
                weights = shared_characters(text, after, before).to(states[0])
                known = weights.sum(1) > 0
                mean = weights[known] @ states[0][row, : len(before)]
                yield states[1][row, : len(after)][known], mean

    @torch.no_grad()
    def disagreement(self, pipe: Any, captions: Sequence[str], queries: BaseQueries) -> list[float]:
        """Return the unexplained share of the layers' variance for every caption: mean squared error / variance.

        The variance is that of the old adapter's outputs over all captions, as that of one caption may be small.
        """
        rows = torch.from_numpy(np.random.default_rng(0).integers(len(queries), size=len(captions)))
        put = {name: states[rows] for name, states in queries.states.items()}
        wanted, given = (
            layer_outputs(one.adapter, store, pipe, captions)(range(len(captions)), put)[0]
            for one, store in zip((self.old, self.new), self.stores, strict=True)
        )
        shares = [
            (given[name] - wanted[name]).square().mean((1, 2))
            / (wanted[name] - wanted[name].mean((0, 1))).square().mean()
            for name in put
        ]
        return [float(share) for share in torch.stack(shares).mean(0)]


def llm_of(controller: LLMController) -> DecoderLLM:
    """Return a controller's LLM.

    Raises:
        ConfigError: the controller has saved encodings instead of an LLM.
    """
    if not isinstance(controller.llm, DecoderLLM):
        raise ConfigError(
            f"the adapter was loaded with saved encodings of {controller.llm.id!r}, but captions must be encoded: load "
            "the LLM"
        )
    return controller.llm


def layer_outputs(
    adapter: LLMDiffAdapter, store: EncodingCache, pipe: Any, captions: Sequence[str]
) -> Target:
    """Return a function that gives the outputs of the denoiser's text attention with an adapter."""
    denoiser: Any = families.denoiser_of(pipe)
    text_layers: dict[str, Any] = layers.text_layers(denoiser)

    def answer(
        indices: Sequence[int], put: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Tensor | None]:
        states, pooled = adapter.condition(store.batch([captions[i] for i in indices]))
        states = states.to(denoiser.device, denoiser.dtype)
        with install(denoiser, adapter):
            return {
                name: attn(put[name].to(states), encoder_hidden_states=states).float()
                for name, attn in text_layers.items()
            }, pooled

    return answer
