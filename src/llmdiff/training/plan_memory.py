"""The memory of one process of a run, by what it holds."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from llmdiff.adapter.adapter import is_hidden
from llmdiff.training.config import TrainingConfig
from llmdiff.training.meta_models import MetaModels

# bitsandbytes keeps a float32 scale for every so many numbers of a moment, and small tensors in float32.
_BLOCK, _SMALL = 256, 4096


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one process. Units: bytes.

    Fields:
        whole: with everything trained on every process (one process, or DDP); sharded: with FSDP.
        activations: at their peak, without and with gradient checkpointing.
        trained_bytes: of the trained parameters, in float32.
    """

    whole: Mapping[str, int]
    sharded: Mapping[str, int]
    activations: Mapping[str, int]
    trained_bytes: int


def memory_of(
    models: MetaModels, training: TrainingConfig, processes: int, activations: Mapping[bool, int]
) -> Memory:
    """Return the memory of a process; `activations` without and with checkpointing, as counted."""
    frozen = {
        "LLM": module_bytes(models.llm),
        "denoiser": module_bytes(models.denoiser),
        "VAE": module_bytes(models.pipe.vae),
        "text encoders and other parts": sum(map(module_bytes, models.others.values())),
    }
    chosen = activations[training.gradient_checkpointing]
    trained = [one for one in models.adapter.parameters() if one.requires_grad]
    weights: int = 4 * sum(one.numel() for one in trained)
    # FSDP leaves single numbers whole.
    single: int = 4 * sum(one.numel() for one in trained if one.ndim == 0)
    moments = moments_bytes(models.adapter, training.optimizer)

    def shared(size: int) -> int:
        return single + (size - single) // processes

    whole = frozen | {
        "adapter": module_bytes(models.adapter),
        # DDP adds gradients up in buckets of their own.
        "gradients": weights * (2 if processes > 1 else 1),
        "moments": moments,
        "averages": weights,
        "activations": chosen,
    }
    # Weights are whole while a step runs, and gradients until its end: FSDP has the adapter for one group.
    sharded = whole | {
        "adapter": module_bytes(models.adapter) + shared(weights),
        "gradients": weights + shared(weights),
        "moments": moments // processes,
        "averages": shared(weights),
    }
    return Memory(
        whole=whole,
        sharded=sharded,
        activations={"plain": activations[False], "checkpointed": activations[True]},
        trained_bytes=weights,
    )


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def moments_bytes(adapter: nn.Module, optimizer: str) -> int:
    """Return the bytes that an optimiser remembers of the trained parameters, counts of steps included."""
    total = 0
    for name, one in adapter.named_parameters():
        if not one.requires_grad:
            continue
        step = 4
        if optimizer == "adamw8bit" and one.numel() >= _SMALL:
            total += 2 * (one.numel() + 4 * -(-one.numel() // _BLOCK))
        elif optimizer == "muon" and one.ndim > 1 and is_hidden(name):
            total += 4 * one.numel() + step
        else:
            total += 8 * one.numel() + step
    return total
