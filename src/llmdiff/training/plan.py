"""What a run will take, known before any weight is loaded: what `llmdiff plan` prints.

Parameters and the bytes of weights, gradients, moments and averages are exact. Activations and FLOPs are counted on the
meta device; seconds on a GPU follow from them and its data sheet, see `gpus`. Left out: validation, sample pictures,
reading pictures, and what an allocator loses.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from llmdiff.language.score_groups import group_parts
from llmdiff.training.config import TrainConfig
from llmdiff.training.gpus import GPUS
from llmdiff.training.meta_models import MetaModels, meta_models
from llmdiff.training.plan_memory import Memory, memory_of
from llmdiff.training.plan_step import count_llm, count_step, count_vae, latent_shape, side_px
from llmdiff.training.prepare import COMPUTED_IN, set_trainable

_CAPTIONS_AT_ONCE = 32  # when the store is filled

Calls = Counter[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan cannot know. `samples` None: as many as the data's own scenes, else a million."""

    processes: int = 1
    tokens: int = 32
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class GpuPlan:
    """A run on one kind of GPU. `prepare_gpu_hours`: filling the store, once."""

    name: str
    fits: bool
    step_s: float
    samples_per_s: float
    gpu_days: float
    prepare_gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes.

    Units: bytes, FLOPs, samples; `step` is one pass of one process, by parts; `cache_bytes_per_sample` has what the
    store holds of a sample under every setting, and `cache_bytes` what it will hold under this one.
    """

    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    memory: Memory
    samples_per_step: int
    step_flops: Mapping[str, int]
    step_bytes: Mapping[str, int]
    gpus: tuple[GpuPlan, ...]
    samples: int
    cache_bytes_per_sample: Mapping[str, int]
    cache_bytes: int
    published: tuple[str, ...]
    processes: int
    sharded: bool
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def make_plan(config: TrainConfig, assumed: Assumptions) -> Plan:
    """Return what a run takes.

    Raises:
        LLMDiffError: a model's config is not to be had, or LLM and base do not fit each other.
    """
    training, data = config.training, config.data
    models = meta_models(config.models, COMPUTED_IN[training.precision])
    set_trainable(models.adapter, training)
    half = None if training.precision == "no" else COMPUTED_IN[training.precision]
    latents = latent_shape(models, config)
    step = {
        asked: count_step(models, config, latents, tokens=assumed.tokens, checkpointing=asked, like_gpu=half)
        for asked in (False, True)
    }
    chosen = step[training.gradient_checkpointing]
    parts: dict[str, Calls] = {"denoiser": chosen.calls}
    if not training.stores_encodings:
        parts["llm"] = count_llm(models, training.batch_size, assumed.tokens).calls
    side = side_px(models, config)
    if not data.store_latents:
        parts["vae"] = count_vae(models, training.batch_size, side, half).calls
    samples = assumed.samples or (data.scenes if data.kind == "scenes" else 1_000_000)
    cache = _cache(models, config, latents, assumed.tokens)
    read = cache["encodings"] if training.score_groups is None else cache["grouped scores"]
    stored = training.stores_encodings * read + data.store_latents * cache["latents"]
    memory = memory_of(
        models, training, assumed.processes, {asked: cost.peak_bytes for asked, cost in step.items()}
    )
    once = _prepare_calls(models, config, assumed.tokens, side, half)
    per_step = training.batch_size * training.accumulation_steps * assumed.processes
    return Plan(
        trained=_trained(models.adapter),
        frozen={name: _count(module) for name, module in _frozen(models).items()},
        memory=memory,
        samples_per_step=per_step,
        step_flops={name: sum(flops * n for (flops, _), n in calls.items()) for name, calls in parts.items()},
        step_bytes={name: sum(size * n for (_, size), n in calls.items()) for name, calls in parts.items()},
        gpus=tuple(_on_gpus(config, assumed, parts, once, samples, per_step, memory)),
        samples=samples,
        cache_bytes_per_sample=cache,
        cache_bytes=stored * samples,
        published=models.published,
        processes=assumed.processes,
        sharded=training.sharded,
        tokens=assumed.tokens,
    )


def _cache(models: MetaModels, config: TrainConfig, latents: tuple[int, ...], tokens: int) -> dict[str, int]:
    text = models.llm.config.get_text_config(decoder=True)
    half = 2  # bytes: everything in the store is float16
    states = half * tokens * text.hidden_size
    channels, height, width = latents
    groups = config.training.score_groups
    context = models.adapter.context
    assert context is not None
    return {
        "latents": half * channels * height * width,
        "encodings": states,
        **({} if groups is None else {"grouped scores": group_parts(context, groups) * states}),
        # For comparison; no setting keeps them: x_0, and two updates of every block.
        "all block updates": (2 * text.num_hidden_layers + 1) * states,
    }


def _prepare_calls(
    models: MetaModels, config: TrainConfig, tokens: int, side: int, half: torch.dtype | None
) -> list[tuple[Calls, int]]:
    """What filling the store costs: operations, and how many samples they are for."""
    found: list[tuple[Calls, int]] = []
    if config.training.stores_encodings:
        found.append((count_llm(models, _CAPTIONS_AT_ONCE, tokens).calls, _CAPTIONS_AT_ONCE))
    if config.data.store_latents:
        found.append((count_vae(models, 1, side, half).calls, 1))
    return found


def _on_gpus(
    config: TrainConfig,
    assumed: Assumptions,
    parts: Mapping[str, Calls],
    once: list[tuple[Calls, int]],
    samples: int,
    per_step: int,
    memory: Memory,
) -> list[GpuPlan]:
    training, count = config.training, assumed.processes
    half = training.precision != "no"
    rows = memory.sharded if training.sharded else memory.whole
    trained = memory.trained_bytes
    # All-reduce sends 2 (n - 1) / n of the gradients; FSDP gathers weights twice and scatters gradients once.
    sent = (3 if training.sharded else 2) * (count - 1) / count * trained
    # AdamW, the averages and the norm read or write every parameter's float32 numbers 12 times.
    updated = 12 * trained / (count if training.sharded else 1)
    found: list[GpuPlan] = []
    for gpu in GPUS:
        passes = sum(gpu.seconds(calls, half=half) for calls in parts.values()) * training.accumulation_steps
        step_s = passes + gpu.copy_seconds(updated) + gpu.link_seconds(sent)
        prepare_s = sum(gpu.seconds(calls, half=half) / n * samples for calls, n in once)
        found.append(
            GpuPlan(
                name=gpu.name,
                fits=sum(rows.values()) <= gpu.memory_gb * 1e9,
                step_s=step_s,
                samples_per_s=per_step / step_s,
                gpu_days=step_s * training.steps * count / 86_400,
                prepare_gpu_hours=prepare_s / 3600,
            )
        )
    return found


def _trained(adapter: nn.Module) -> dict[str, int]:
    """Trained numbers by the adapter's parts, the branches' by kind."""
    found: Counter[str] = Counter()
    for name, parameter in adapter.named_parameters():
        if parameter.requires_grad:
            part, *inside = name.split(".")
            if part == "branches":  # branches.LAYER.to_k.weight, branches.LAYER.a1
                part = f"branches.{inside[1] if len(inside) > 2 else 'gates'}"
            found[part] += parameter.numel()
    return dict(found)


def _frozen(models: MetaModels) -> dict[str, nn.Module]:
    return {"llm": models.llm, "denoiser": models.denoiser, "vae": models.pipe.vae, **models.others}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
