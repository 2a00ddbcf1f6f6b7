"""The interface between the trainer and whatever conditions a frozen denoiser on text."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmdiff.language.cache import CaptionStore, EncodingStore, ScoreStore
from llmdiff.training.checkpoint import part

Conditioned = tuple[Tensor, Tensor | None]
"""`encoder_hidden_states` for diffusers, and a pooled vector or None."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a training: a frozen reading of each caption, and what each step computes from it.

    Fields:
        name: "gains" trains on few captions for a small share of the steps, because their readings are too large to
            be stored for all captions; "main" trains on all captions for the remaining steps.
        keeps: content of the store: a `TextEncoding` or `GroupedScores` of each caption, or nothing, if captions are
            read in every step.
        read: the frozen part: captions => their reading.
        condition: the trained part: a reading and the step's generator => `Conditioned`, with gradients. Without a
            generator no noise is added, as in drawing.
        key: a digest of everything that a reading depends on besides its caption, so that other runs can use it; None
            if it depends on weights trained in this run.
    """

    name: Literal["gains", "main"]
    keeps: Literal["encodings", "scores", "nothing"]
    read: Callable[[list[str]], Any]
    condition: Callable[[Any, torch.Generator | None], Conditioned]
    key: str | None = None

    def store(self, shared: Path, own: Path) -> CaptionStore[Any] | None:
        """Return the store of readings in the folder `shared` by runs or in the run's `own`; None for "nothing"."""
        if self.keeps == "nothing":
            return None
        folder = own / self.name if self.key is None else shared / self.keeps / self.key
        return (EncodingStore if self.keeps == "encodings" else ScoreStore)(folder, self.read)


class Conditioning(ABC):
    """A frozen reader of prompts, trainable modules behind it, and how their states enter a denoiser.

    Fields:
        source_id: the name of the reader.
        modules: everything that is trained and saved, by name.
    """

    source_id: str
    modules: Mapping[str, nn.Module]

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """Yield the stages of its training in order. Parameters that only one stage trains are frozen after it."""

    @abstractmethod
    def installed(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the denoiser reads the result of `Stage.condition`; undone exactly."""

    @abstractmethod
    def attached(self, pipe: Any) -> AbstractContextManager[Any]:
        """Return a context in which `pipe("a prompt")` is conditioned this way; undone exactly."""

    def reader_rests(self) -> AbstractContextManager[Any]:
        """Return a context in which the reader may free its memory, because all captions are in the store."""
        return nullcontext()

    def layer_inputs(self, states: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the states that a cross-attention layer reads, computed from the result of `Stage.condition`.

        Used by training from captions alone, while installed.

        Shapes: timesteps (B,) => states (B, T, any width), an additive mask (B, 1, T) or None.
        """
        return states, None

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter of this name ("module.path"), provided that it is a matrix."""
        return False

    def lr_share(self, name: str) -> float:
        """Return the factor of the learning rate for the parameter of this name."""
        return 1.0

    def figures(self) -> Mapping[str, float]:
        """Return figures to log besides the loss."""
        return {}

    def train(self, training: bool = True) -> None:
        """Set all modules to training or evaluation mode."""
        for module in self.modules.values():
            module.train(training)

    def trainable(self) -> dict[str, int]:
        """Return the number of elements of every trainable parameter by name."""
        return {
            f"{prefix}.{name}": parameter.numel()
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors to save, by name."""
        return {
            f"{prefix}.{name}": tensor.detach().cpu().contiguous()
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load all saved tensors."""
        for prefix, module in self.modules.items():
            module.load_state_dict(part(tensors, prefix))
