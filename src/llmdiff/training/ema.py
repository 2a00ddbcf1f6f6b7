"""The exponential moving average of weights, which is what a run leaves behind and is judged by."""

from collections.abc import Mapping

import torch
from torch import nn


class Ema:
    """An exponential moving average of parameters, kept in float32."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], horizon: int) -> None:
        self.horizon = horizon
        self._live = list(parameters.values())
        self.values = {name: parameter.detach().clone().float() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step; returns nothing."""
        decay = min(1 - 1 / self.horizon, (1 + step) / (10 + step))
        averages = list(self.values.values())
        for kind in {type(average) for average in averages}:  # shared out among processes, or not
            pairs = [(a, b) for a, b in zip(averages, self._live, strict=True) if type(a) is kind]
            torch._foreach_lerp_(
                [average for average, _ in pairs], [live.detach().float() for _, live in pairs], 1 - decay
            )


class averaged:
    """A context in which the parameters hold their moving averages."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], ema: Ema) -> None:
        self._parameters, self._ema = parameters, ema

    @torch.no_grad()
    def __enter__(self) -> None:
        self._live = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.copy_(self._ema.values[name])

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._live[name])
