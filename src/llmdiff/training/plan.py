"""What a run will take, known before any weight is loaded: what `llmdiff plan` prints.

Parameters and the bytes of weights, gradients, moments and averages are exact. Activations and FLOPs are counted on the
meta device; seconds on a GPU follow from them and its data sheet, see `gpus`. Left out: validation, sample pictures,
reading pictures, and what an allocator loses.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from llmdiff.adapter.installation import install
from llmdiff.language.score_groups import group_parts
from llmdiff.training.config import TrainConfig
from llmdiff.training.counting import Cost, LikeGpu
from llmdiff.training.denoise import Sizes, denoise, encode_pictures, side_multiple_px
from llmdiff.training.gpus import GPUS
from llmdiff.training.meta_models import MetaModels, meta_models
from llmdiff.training.plan_memory import Memory, memory_of
from llmdiff.training.prepare import COMPUTED_IN, set_trainable
from llmdiff.types import BlockStates, TextEncoding

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
    latents = _latent_shape(models, config)
    step = {
        asked: count_step(models, config, latents, tokens=assumed.tokens, checkpointing=asked, like_gpu=half)
        for asked in (False, True)
    }
    chosen = step[training.gradient_checkpointing]
    parts: dict[str, Calls] = {"denoiser": chosen.calls}
    if not training.stores_encodings:
        parts["llm"] = count_llm(models, training.batch_size, assumed.tokens).calls
    side_px = _side_px(models, config)
    if not data.store_latents:
        parts["vae"] = count_vae(models, training.batch_size, side_px, half).calls
    samples = assumed.samples or (data.scenes if data.kind == "scenes" else 1_000_000)
    cache = _cache(models, config, latents, assumed.tokens)
    read = cache["encodings"] if training.score_groups is None else cache["grouped scores"]
    stored = training.stores_encodings * read + data.store_latents * cache["latents"]
    memory = memory_of(
        models, training, assumed.processes, {asked: cost.peak_bytes for asked, cost in step.items()}
    )
    once = _prepare_calls(models, config, assumed.tokens, side_px, half)
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


def count_step(
    models: MetaModels,
    config: TrainConfig,
    latents: tuple[int, ...],
    *,
    tokens: int,
    checkpointing: bool,
    like_gpu: torch.dtype | None,
    fused: bool = True,
) -> Cost:
    """Return what the denoiser's and the adapter's part of one pass costs: forward and backward.

    `fused` False: attention as its formula says, every matrix stored.
    """
    adapter, denoiser = models.adapter, models.denoiser

    def mode() -> AbstractContextManager[Any]:
        return LikeGpu(like_gpu) if fused else nullcontext()

    def again(block: Any, *inputs: Any) -> Any:
        # A backward pass runs outside of the mode, so what it computes again has to enter it anew.
        contexts: Any = lambda: (nullcontext(), mode())  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    if checkpointing:
        denoiser.enable_gradient_checkpointing(again)
    else:
        denoiser.disable_gradient_checkpointing()
    cost = Cost(adapter.parameters())
    with install(denoiser, adapter), cost, mode():
        pass_once(models, config, latents, tokens=tokens, device=torch.device("meta"))
    denoiser.disable_gradient_checkpointing()
    adapter.zero_grad(set_to_none=True)
    return cost


def pass_once(
    models: MetaModels, config: TrainConfig, latents: tuple[int, ...], *, tokens: int, device: torch.device
) -> None:
    """Run the denoiser's and the adapter's part of one pass where they are, the adapter installed. Returns nothing.

    What the LLM has read and the latents are only as large as in a run: on a real device all zeros.
    """
    count, side_px = config.training.batch_size, config.data.resolution_px
    size = Sizes(original=(side_px, side_px), crop=(0, 0), target=(side_px, side_px))
    flow = models.family.objective == "flow"
    noisy = _blank(count, *latents, device=device)
    timesteps = _blank(count, device=device, dtype=torch.float32 if flow else torch.int64)
    states, pooled = models.adapter.condition(_encoding(models, config, count, tokens, device))
    output = denoise(models.denoiser, models.family, noisy, timesteps, states, pooled, [size] * count)
    loss: Any = F.mse_loss(output.float(), torch.empty_like(noisy))
    loss.backward()


def _blank(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.empty if device.type == "meta" else torch.zeros
    return make(*shape, device=device, dtype=dtype)


def count_llm(models: MetaModels, texts: int, tokens: int) -> Cost:
    """Return what reading texts costs: every token in its context, and alone where that is not known by its id."""
    ids = torch.zeros(texts, tokens, dtype=torch.int64, device="meta")
    context = models.adapter.context
    known = context is not None and context.lone == "vocabulary"

    def read() -> None:
        for some in (ids,) if known else (ids, ids.reshape(-1, 1)):
            # With a cache, as when it reads for real; without, it would look for packed texts in the ids.
            models.llm.base_model(input_ids=some, past_key_values=DynamicCache(), use_cache=True)

    return _counted(read, None)  # autocast is off while it reads


def count_vae(models: MetaModels, pictures: int, side_px: int, like_gpu: torch.dtype | None) -> Cost:
    """Return what encoding pictures costs."""
    pixels = torch.empty(pictures, 3, side_px, side_px, device="meta")
    return _counted(lambda: encode_pictures(models.pipe.vae, pixels), like_gpu)


def _counted(act: Callable[[], Any], like_gpu: torch.dtype | None) -> Cost:
    cost = Cost()
    with torch.no_grad(), cost, LikeGpu(like_gpu):
        act()
    return cost


def _encoding(
    models: MetaModels, config: TrainConfig, count: int, tokens: int, device: torch.device
) -> TextEncoding:
    """What the adapter gets of the LLM; while gains are learned, their sum is part of the pass."""
    context = models.adapter.context
    assert context is not None
    mask = torch.ones(count, tokens, dtype=torch.bool, device=device)
    shape = (count, tokens, context.hidden_size)
    if config.training.gains == "frozen":
        return TextEncoding(states=_blank(*shape, device=device), token_mask=mask)
    groups = config.training.score_groups
    if groups is not None:
        parts = _blank(count * tokens, group_parts(context, groups), context.hidden_size, device=device)
        # sum_groups puts every token in its place by the mask's values, which the meta device has not.
        gains = context.gamma[:1].expand(parts.shape[1])
        states = torch.einsum("p,npd->nd", gains, parts).reshape(shape)
        return TextEncoding(states=states, token_mask=mask)
    updates = [_blank(context.num_blocks, *shape, device=device) for _ in range(2)]
    read = BlockStates(
        x0=_blank(*shape, device=device),
        context=updates[0],
        lone=updates[1],
        token_mask=mask,
        input_ids=torch.zeros(count, tokens, dtype=torch.int64, device=device),
    )
    return TextEncoding(states=context.sum(read), token_mask=mask)


def _side_px(models: MetaModels, config: TrainConfig) -> int:
    shapes = config.data.shapes(side_multiple_px(models.pipe, models.family))
    return max(1, shapes.resolution_px // shapes.multiple_px) * shapes.multiple_px


def _latent_shape(models: MetaModels, config: TrainConfig) -> tuple[int, ...]:
    side_px = _side_px(models, config)
    with torch.no_grad():
        found: Tensor = encode_pictures(models.pipe.vae, torch.empty(1, 3, side_px, side_px, device="meta"))
    return tuple(found.shape[1:])


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
    models: MetaModels, config: TrainConfig, tokens: int, side_px: int, half: torch.dtype | None
) -> list[tuple[Calls, int]]:
    """What filling the store costs: operations, and how many samples they are for."""
    found: list[tuple[Calls, int]] = []
    if config.training.stores_encodings:
        found.append((count_llm(models, _CAPTIONS_AT_ONCE, tokens).calls, _CAPTIONS_AT_ONCE))
    if config.data.store_latents:
        found.append((count_vae(models, 1, side_px, half).calls, 1))
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
