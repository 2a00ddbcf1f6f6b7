"""Count FLOPs and activations of one training step on fake tensors, for `training.plan`."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from llmdiff.adapter import layers
from llmdiff.adapter.installation import install
from llmdiff.language.score_groups import group_parts
from llmdiff.training.config import TrainConfig
from llmdiff.training.counting import GpuAutocast, PeakMemory, flop_counter
from llmdiff.training.denoise import Sizes, denoise
from llmdiff.training.fake_models import FakeModels
from llmdiff.training.prepare import COMPUTED_IN
from llmdiff.training.warm_start import POSITIONS
from llmdiff.types import BlockStates, TextEncoding


def count_step(
    models: FakeModels, config: TrainConfig, latents: tuple[int, ...], tokens: int
) -> tuple[int, int]:
    """Return the FLOPs of a pass of denoiser and adapter, forward and backward, and its peak of activations.

    Units: FLOPs; bytes.
    """
    training, side_px = config.training, config.data.resolution_px
    count, like_gpu = training.batch_size, _autocast(config)

    def again(block: Any, *inputs: Any) -> Any:
        # A backward pass runs outside of function modes: recomputation has to enter the mode again.
        contexts: Any = lambda: (nullcontext(), like_gpu())  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    if training.gradient_checkpointing:
        models.denoiser.enable_gradient_checkpointing(again)
    size = Sizes(original=(side_px, side_px), crop=(0, 0), target=(side_px, side_px))
    noisy = torch.empty(count, *latents)
    timesteps = torch.empty(count, dtype=torch.float32 if models.family.objective == "flow" else torch.int64)

    def loss() -> Tensor:
        states, pooled = models.adapter.condition(_encoding(models, config, tokens))
        output = denoise(models.denoiser, models.family, noisy, timesteps, states, pooled, [size] * count)
        return F.mse_loss(output.float(), torch.empty_like(noisy))

    return _count_pass(models, config, loss)


def count_text_step(models: FakeModels, config: TrainConfig, tokens: int) -> tuple[int, int]:
    """Return the same for a step from captions alone, in which only the denoiser's text attention runs.

    The targets by the base's text encoder and attention are not included; they run forward only.
    """
    count = config.training.batch_size
    text_layers: Mapping[str, Any] = layers.text_layers(models.denoiser)
    queries = {
        name: torch.empty(count, POSITIONS, attn.to_q.in_features) for name, attn in text_layers.items()
    }

    def loss() -> Tensor:
        states, _ = models.adapter.condition(_encoding(models, config, tokens))
        errors = [
            attn(queries[name], encoder_hidden_states=states.to(queries[name])).float().square().mean()
            for name, attn in text_layers.items()
        ]
        return torch.stack(errors).mean()

    return _count_pass(models, config, loss)


def _count_pass(models: FakeModels, config: TrainConfig, loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the FLOPs of a pass, forward and backward, and its peak of activations in bytes."""
    training = config.training
    half, like_gpu = training.precision != "no", _autocast(config)
    trained = [one for one in models.adapter.parameters() if one.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # exist before, because gradients are counted separately

    def step() -> None:
        with install(models.denoiser, models.adapter), like_gpu():
            with torch.autocast("cpu", COMPUTED_IN[training.precision], enabled=half):
                value: Any = loss()
            value.backward()

    # Separate runs: the FLOP counter keeps references to recomputed activations.
    with PeakMemory() as memory:
        step()
    with flop_counter() as flops:
        step()
    return flops.get_total_flops(), memory.peak_bytes


def _autocast(config: TrainConfig) -> Any:
    return nullcontext if config.training.precision == "no" else GpuAutocast


def count_llm(models: FakeModels, texts: int, tokens: int) -> int:
    """Return the FLOPs of encoding texts: each token in its context, and alone."""
    ids = torch.zeros(texts, tokens, dtype=torch.int64)

    def read() -> None:
        for some in (ids, ids.reshape(-1, 1)):
            # With a cache, as in real encoding; without one, transformers looks for packed sequences in the ids.
            models.llm.base_model(
                input_ids=some, past_key_values=DynamicCache(config=models.llm.config), use_cache=True
            )

    return counted(read)


def counted(act: Callable[[], Any]) -> int:
    """Return the FLOPs of a function without gradients."""
    with torch.no_grad(), flop_counter() as flops:
        act()
    return int(flops.get_total_flops())


def _encoding(models: FakeModels, config: TrainConfig, tokens: int) -> TextEncoding:
    """Return the adapter's input; if gains are trained, compute it as a sum, which is part of the pass."""
    context, count, groups = models.context, config.training.batch_size, config.training.score_groups
    mask = torch.ones(count, tokens, dtype=torch.bool)
    shape = (count, tokens, context.hidden_size)
    if config.training.gains != "learned":
        return TextEncoding(states=context.for_groups(torch.empty(shape)), token_mask=mask)
    if groups is not None:
        # Not `sum_groups`, which needs the values of the mask: fake tensors have none.
        parts = torch.empty(count * tokens, group_parts(context, groups), context.hidden_size)
        gains = context.gains()[0][:1].expand(parts.shape[1], *context.gains()[0].shape[1:])
        weighted = "p,npd->nd" if context.routed is None else "pg,npd->ngd"
        states = torch.einsum(weighted, gains, parts)
        return TextEncoding(states=states.reshape(*shape[:2], *states.shape[1:]), token_mask=mask)
    updates = torch.empty(2, context.num_blocks, *shape)
    read = BlockStates(
        x0=torch.empty(shape),
        context=updates[0],
        lone=updates[1],
        token_mask=mask,
        input_ids=torch.zeros(count, tokens, dtype=torch.int64),
    )
    return TextEncoding(states=context.sum(read), token_mask=mask)
