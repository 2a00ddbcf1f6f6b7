"""Estimate parameters, memory, FLOPs and disk space of a training from config files, for `llmdiff plan`.

Parameters and the bytes of weights, gradients, moments and averages are exact. FLOPs and activations are those of one
training step, run on fake tensors. Validation, sample pictures and the allocator's overhead are not included.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from llmdiff.adapter.adapter import LLMDiffAdapter, uses_muon
from llmdiff.errors import ConfigError
from llmdiff.language.score_groups import group_parts
from llmdiff.training.config import TrainConfig
from llmdiff.training.denoise import encode_pictures, side_multiple_px
from llmdiff.training.fake_models import FakeModels, fake_models
from llmdiff.training.measure import Measured
from llmdiff.training.plan_steps import count_llm, count_step, count_text_step, counted
from llmdiff.training.prepare import COMPUTED_IN, set_trainable

# bitsandbytes keeps a float32 scale for every block of a moment, and small tensors in float32.
_BLOCK, _SMALL = 256, 4096


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The resources that a training needs.

    Fields:
        trained, frozen: numbers of parameters by part.
        memory: bytes of one process by content.
        step_flops: FLOPs of one pass of one process by part.
        cache_bytes_per_sample: bytes of a sample in the store by setting; cache_bytes: bytes of all samples with the
            current settings.
        measured: times of real steps on the current device, if requested.

    Units: bytes, FLOPs, samples.
    """

    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    memory: Mapping[str, int]
    step_flops: Mapping[str, int]
    samples_per_step: int
    samples: int
    cache_bytes_per_sample: Mapping[str, int]
    cache_bytes: int
    tokens: int
    processes: int
    measured: Measured | None = None

    def text(self) -> str:
        """Return the plan as text tables."""
        parts = [
            _table("trained parameters", {**self.trained, "all": sum(self.trained.values())}, "{:,}".format),
            _table("frozen parameters", self.frozen, "{:,}".format),
            _table(
                f"memory of each of {self.processes}" if self.processes > 1 else "memory",
                {**self.memory, "all": sum(self.memory.values())},
                lambda size: scaled(size, "B"),
            ),
            _table(
                f"FLOPs of a pass ({self.tokens} tokens a caption)",
                self.step_flops,
                lambda flops: scaled(flops, "FLOP"),
            ),
            _table(
                f"store, of a sample ({scaled(self.cache_bytes, 'B')} for {self.samples:,} samples)",
                self.cache_bytes_per_sample,
                lambda size: scaled(size, "B"),
            ),
        ]
        return "\n\n".join([*parts, *([] if self.measured is None else [self.measured.text()])])


def make_plan(
    config: TrainConfig, *, processes: int = 1, tokens: int = 32, samples: int | None = None
) -> Plan:
    """Return the plan of a training; `samples` None means the number of scenes, or a million for other data.

    Raises:
        ConfigError: the shapes inside the denoiser depend on the texts.
        LLMDiffError: a model's config cannot be found, or LLM and base cannot be combined.
    """
    training, data = config.training, config.data
    with FakeTensorMode():
        models = fake_models(config.models, COMPUTED_IN[training.precision])
        set_trainable(models.adapter, training)
        side = _side_px(models, config)
        pixels = torch.empty(1, 3, side, side)
        with torch.no_grad():
            latents = tuple(encode_pictures(models.pipe.vae, pixels).shape[1:])
        try:
            if training.steps:
                flops, activations = count_step(models, config, latents, tokens)
            else:
                flops, activations = count_text_step(models, config, tokens)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise ConfigError(
                f"a pass of {models.family.title} cannot be counted without weights: its shapes depend on the lengths "
                "of the texts; train a few steps, and read memory_gb in log.jsonl"
            ) from error
        parts = {"denoiser" if training.steps else "text attention": flops}
        if not training.stores_encodings:
            parts["llm"] = count_llm(models, training.batch_size, tokens)
        if training.steps and not data.store_latents:
            batch = pixels.expand(training.batch_size, -1, -1, -1)
            parts["vae"] = counted(lambda: encode_pictures(models.pipe.vae, batch))
    samples = samples or (data.scenes if data.kind == "scenes" else 1_000_000)
    cache = _cache(models, config, latents, tokens)
    read = cache["grouped scores" if training.gains == "learned" and training.score_groups else "encodings"]
    stored = training.stores_encodings * read + data.store_latents * cache["latents"]
    frozen = {"llm": models.llm, "denoiser": models.denoiser, "vae": models.pipe.vae, **models.others}
    return Plan(
        trained=_trained(models.adapter),
        frozen={name: sum(one.numel() for one in module.parameters()) for name, module in frozen.items()},
        memory=_memory(models, config, processes) | {"activations": activations},
        step_flops=parts,
        samples_per_step=training.batch_size * training.accumulation_steps * processes,
        samples=samples,
        cache_bytes_per_sample=cache,
        cache_bytes=stored * samples,
        tokens=tokens,
        processes=processes,
    )


def moments_bytes(adapter: nn.Module, optimizer: str) -> int:
    """Return the bytes of an optimiser's state for the trained parameters, including step counts."""
    total = 0
    for name, one in adapter.named_parameters():
        if not one.requires_grad:
            continue
        if optimizer == "adamw8bit" and one.numel() >= _SMALL:
            total += 2 * (one.numel() + 4 * -(-one.numel() // _BLOCK))
        else:
            one_moment = optimizer == "muon" and one.ndim > 1 and uses_muon(name)
            total += (4 if one_moment else 8) * one.numel() + 4
    return total


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    total: int = sum(one.numel() * one.element_size() for one in [*module.parameters(), *module.buffers()])
    return total


def scaled(value: float, unit: str) -> str:
    """Return a number with three digits and its unit: 1234567, "B" => 1.23 MB."""
    size, letter = next(
        (
            (size, letter)
            for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
            if value >= size
        ),
        (1.0, ""),
    )
    digits = value / size
    return f"{digits:.0f} {letter}{unit}" if digits >= 100 else f"{digits:.3g} {letter}{unit}"


def _memory(models: FakeModels, config: TrainConfig, processes: int) -> dict[str, int]:
    """Return the bytes of one process by content, without activations."""
    trained = [one for one in models.adapter.parameters() if one.requires_grad]
    weights: int = 4 * sum(one.numel() for one in trained)
    moments = moments_bytes(models.adapter, config.training.optimizer)
    memory = {
        "LLM": module_bytes(models.llm),
        "denoiser": module_bytes(models.denoiser),
        "VAE": module_bytes(models.pipe.vae),
        "text encoders and other parts": sum(map(module_bytes, models.others.values())),
        "adapter": module_bytes(models.adapter),
        # DDP sums gradients in separate buckets.
        "gradients": weights * (2 if processes > 1 else 1),
        "moments": moments,
        "averages": weights,
    }
    if config.training.sharded and processes > 1:
        # FSDP gathers weights during a step and shards gradients at its end.
        share = weights // processes
        memory["adapter"] += share
        memory |= {"gradients": weights + share, "moments": moments // processes, "averages": share}
    return memory


def _cache(models: FakeModels, config: TrainConfig, latents: tuple[int, ...], tokens: int) -> dict[str, int]:
    text, groups = models.llm.config.get_text_config(decoder=True), config.training.score_groups
    half = 2  # bytes: everything in the store is float16
    states = half * tokens * text.hidden_size
    channels, height, width = latents
    return {
        "latents": half * channels * height * width,
        "encodings": config.models.routing * states,
        **({} if groups is None else {"grouped scores": group_parts(models.context, groups) * states}),
        # For comparison only: x_0 and two updates of every block, which no setting stores.
        "all block updates": (2 * text.num_hidden_layers + 1) * states,
    }


def _trained(adapter: LLMDiffAdapter) -> dict[str, int]:
    """Return numbers of trained parameters by part of the adapter, for branches by kind."""
    found: Counter[str] = Counter()
    for name, parameter in adapter.named_parameters():
        if parameter.requires_grad:
            part, *inside = name.split(".")
            if part == "branches":  # branches.LAYER.to_k.weight, branches.LAYER.a1
                part = f"branches.{inside[1] if len(inside) > 2 else 'gates'}"
            found[part] += parameter.numel()
    return dict(found)


def _side_px(models: FakeModels, config: TrainConfig) -> int:
    """Return the side of the square training pictures in pixels."""
    shapes = config.data.shapes(side_multiple_px(models.pipe, models.family))
    return max(1, shapes.resolution_px // shapes.multiple_px) * shapes.multiple_px


def _table(title: str, rows: Mapping[str, int], shown: Callable[[int], str]) -> str:
    cells = [(name, shown(value)) for name, value in rows.items()]
    left, right = (max(len(row[side]) for row in cells) for side in (0, 1))
    return "\n".join([title, *(f"  {name:<{left}}  {value:>{right}}" for name, value in cells)])
