"""One interface for every way to condition a frozen denoiser on text: what training, drawing and saving need."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Keeps = Literal["encodings", "scores", "texts"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a training: what is read of every caption once, and what a step computes from it.

    Fields:
        name: "gains" where what is read is too large to be kept for all captions: on a few of them, for a small
            share of the steps. "main": on all captions, for the rest.
        keeps: what `read` gives: a `TextEncoding`, `GroupedScores` or the texts themselves.
        read: the frozen part, captions => raw states.
        condition: raw states and the step's generator => what goes through diffusers as
            `encoder_hidden_states`, with gradients; None draws no noise, as in drawing.
        fixed: whether nothing that was trained has a part in what `read` gives.
    """

    name: Literal["gains", "main"]
    keeps: Keeps
    read: Callable[[list[str]], Any]
    condition: Callable[[Any, torch.Generator | None], Tensor]
    fixed: bool = False


class Conditioning(ABC):
    """A frozen reader of prompts, trainable parts behind it, and the way their states enter a denoiser.

    Fields:
        source_id: the name of what reads the prompts.
        modules: everything that is trained and saved, by name.
    """

    source_id: str
    modules: Mapping[str, nn.Module]

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """Yield the stages of its training in order; what a stage has learned for good is frozen after it."""

    @abstractmethod
    def installed(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context where the denoiser takes what `Stage.condition` gives; undone exactly at its end."""

    @abstractmethod
    def attached(self, pipe: Any) -> AbstractContextManager[Any]:
        """Return a context where plain `pipe("a prompt")` is conditioned this way; undone exactly at its end."""

    def layer_inputs(self, states: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what a text layer of the denoiser, while installed, reads of `Stage.condition`'s states.

        Shapes: timesteps (B,) => states (B, T, any width), an additive mask (B, 1, T) or None.
        """
        return states, None

    def is_hidden(self, name: str) -> bool:
        """Return whether the parameter of this name ("module.path") is a matrix between others, as Muon wants it."""
        return False

    def figures(self) -> Mapping[str, float]:
        """Return figures to log beside the loss."""
        return {}

    def train(self, training: bool = True) -> None:
        """Put all its modules into training or evaluation mode; returns nothing."""
        for module in self.modules.values():
            module.train(training)

    def trainable(self) -> dict[str, int]:
        """Return the size of everything that is trained at present, by name."""
        return {
            f"{prefix}.{name}": parameter.numel()
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that is saved, by name."""
        return {
            f"{prefix}.{name}": tensor.detach().cpu().contiguous()
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved tensors back, all of them; returns nothing."""
        for prefix, module in self.modules.items():
            part = {
                name.removeprefix(f"{prefix}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{prefix}.")
            }
            module.load_state_dict(part)
