"""The base's models during steps on pictures: the denoiser may be compiled, idle models leave the device."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def idle_models(pipe: Any, used: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the pipeline's models that share no weight with the used ones and can be moved.

    Quantised models, and those that accelerate places, stay where they are.
    """
    weights = {id(weight) for module in used for weight in module.parameters()}
    return [
        module
        for module in pipe.components.values()
        if isinstance(module, nn.Module)
        and weights.isdisjoint(map(id, module.parameters()))
        and not any(hasattr(module, name) for name in ("_hf_hook", "hf_device_map", "hf_quantizer"))
    ]


@contextmanager
def on_device(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Return a context in which the models are on this device; afterwards they are back where they were."""
    moved: list[tuple[nn.Module, torch.device]] = []
    try:
        for model in models:
            before = next((weight.device for weight in model.parameters()), device)
            if before != device:
                moved.append((model, before))
                model.to(device)
        yield
    finally:
        for model, before in moved:
            model.to(before)


@contextmanager
def compiled(denoiser: nn.Module, backend: str | None) -> Iterator[None]:
    """Return a context in which calls of the denoiser are compiled by this backend; None: they are not.

    It is compiled in place, so that its weights and those of an adapter keep their names. Code inside that runs
    seldom is left as it is with `torch.compiler.set_stance("force_eager")`.
    """
    if backend is None:
        yield
        return
    denoiser.compile(backend=backend)
    try:
        yield
    finally:
        denoiser._compiled_call_impl = None
