"""LoRA layers of peft that can be added to a model and removed again."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from llmdiff.environment import check_extra

_NAME = "lavi"
LLM_LR_SHARE = 1 / 20
"""Factor of the learning rate for LoRA in an LLM: LaVi-Bridge's release has 5e-6 for it and 1e-4 for the rest."""


class RemovableLora(nn.Module):
    """Low-rank updates of a model's linear and convolutional layers: W x + dropout(B A x).

    A starts with standard deviation 1 / rank, B with 0. A and B are its parameters; the model's own weights are not.
    Outside `applied` the model is unchanged.

    Source: Hu et al. 2021 (arXiv 2106.09685), scale alpha / rank = 1; start and place of the dropout as in the release
        of LaVi-Bridge (arXiv 2403.07860).
    """

    def __init__(self, model: nn.Module, names: Iterable[str], *, rank: int, dropout: float) -> None:
        """Create updates for the layers with these module names.

        Raises:
            LLMDiffError: peft is not installed.
        """
        super().__init__()
        check_extra("benchmark", "peft")
        from peft import LoraConfig, inject_adapter_in_model

        chosen = list(names)
        originals = {name: model.get_submodule(name) for name in chosen}
        wanted = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
        attributes = set(vars(model))
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=chosen)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
        self._layers: dict[str, Any] = {name: model.get_submodule(name) for name in chosen}
        for name, original in originals.items():
            _put(model, name, original)
        for added in set(vars(model)) - attributes:
            delattr(model, added)
        for parameter in model.parameters():
            parameter.requires_grad_(wanted[id(parameter)])
        # Register A and B only: the layers themselves hold the model's weights.
        self.down = nn.ModuleDict()
        self.up = nn.ModuleDict()
        for name, layer in self._layers.items():
            # Trained weights are float32, also in a model of half precision.
            down, up = layer.lora_A[_NAME].float(), layer.lora_B[_NAME].float()
            nn.init.normal_(down.weight, std=1 / rank)
            nn.init.zeros_(up.weight)
            self.down[name.replace(".", "/")] = down.requires_grad_(True)
            self.up[name.replace(".", "/")] = up.requires_grad_(True)
            # peft has its dropout before A.
            layer.lora_B[_NAME] = nn.Sequential(up, nn.Dropout(dropout))

    def train(self, mode: bool = True) -> "RemovableLora":
        """Set the mode, also of the dropout inside the layers, and return itself."""
        super().train(mode)
        for layer in self._layers.values():
            layer.lora_B.train(mode)
        return self

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Return a context in which the model has the updates."""
        for name, layer in self._layers.items():
            _put(model, name, layer)
        try:
            yield
        finally:
            for name, layer in self._layers.items():
                _put(model, name, layer.base_layer)


def lora_in(lora: RemovableLora | None, model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which the model has the updates, if there are any."""
    return nullcontext() if lora is None else lora.applied(model)


def layers_within(model: nn.Module, kinds: frozenset[str]) -> list[str]:
    """Return the names of the linear and convolutional layers inside modules of these classes."""
    inside = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and any(name.startswith(f"{top}.") for top in inside)
    ]


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, layer)
