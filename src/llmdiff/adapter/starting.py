"""Initialise a new adapter so that its text states, keys and values have the same size as the base's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.base_encoder import encode_with_base, has_text_encoder
from llmdiff.adapter.true_weights import in_accepted_dtype, place_of, weight_and_bias


@torch.no_grad()
def init_from_base(
    adapter: Any, pipe: Any, family: families.Family, denoiser: Any, prompts: Sequence[str]
) -> None:
    """Initialise the weights of a new `LLMDiffAdapter`, see `LLMDiffAdapter.create`."""
    states, pooled = _base_text(pipe, prompts)
    # norm(c) has an rms of 1 per token, so weights of std s give an output of rms s * sqrt(D).
    one_unit = adapter.norm.normalized_shape[0] ** -0.5
    _fill(adapter.phi, one_unit * _rms(states))
    if adapter.pooled is not None:
        _fill(adapter.pooled, one_unit * _rms(pooled))
    dtype = denoiser.dtype
    inside = None
    if states is not None:
        # A packed projection may compute in another dtype than its neighbours.
        inside = in_accepted_dtype(
            partial(layers.states_at_layers, denoiser, family),
            states.to(place_of(denoiser, pipe)),
            [dtype],
            name=" and ".join(family.text_projections),
        )
    for name, layer in layers.text_layers(denoiser).items():
        attn: Any = layer
        branch = adapter.branch(name)
        for own, pretrained in ((branch.to_q, attn.to_q), (branch.to_out, attn.to_out[0])):
            weight, bias = weight_and_bias(pretrained, name=name, dtype=dtype)
            own.weight.copy_(weight)
            if own.bias is not None and bias is not None:
                own.bias.copy_(bias)
        key = value = None
        if inside is not None:
            key, value = in_accepted_dtype(
                partial(layers.text_keys_values, attn), inside, [inside.dtype, dtype], name=name
            )
        _fill(branch.to_k, one_unit * _rms(key))
        _fill(branch.to_v, one_unit * _rms(value))


def _base_text(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """Return the base's text states (1, T, W), without padding, and pooled vectors; None without a text encoder."""
    if not has_text_encoder(pipe):
        return None, None
    texts = encode_with_base(pipe, prompts)
    real = torch.ones(texts.states.shape[:2]) if texts.mask is None else texts.mask
    return texts.states[real.bool().to(texts.states.device)][None], texts.pooled


def _rms(states: Tensor | None) -> float:
    return 1.0 if states is None else float(states.float().square().mean().sqrt())


def _fill(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
