"""What the parts of a training step cost, counted on the meta device; the same step, run where the models are."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from llmdiff.adapter.installation import install
from llmdiff.language.score_groups import group_parts
from llmdiff.training.config import TrainConfig
from llmdiff.training.counting import Cost, LikeGpu
from llmdiff.training.denoise import Sizes, denoise, encode_pictures, side_multiple_px
from llmdiff.training.meta_models import MetaModels
from llmdiff.types import BlockStates, TextEncoding


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


def side_px(models: MetaModels, config: TrainConfig) -> int:
    """Return the side of the largest square that a run trains on."""
    shapes = config.data.shapes(side_multiple_px(models.pipe, models.family))
    return max(1, shapes.resolution_px // shapes.multiple_px) * shapes.multiple_px


def latent_shape(models: MetaModels, config: TrainConfig) -> tuple[int, ...]:
    """Return the shape of that square's latents, (C, h, w)."""
    side = side_px(models, config)
    with torch.no_grad():
        found: Tensor = encode_pictures(models.pipe.vae, torch.empty(1, 3, side, side, device="meta"))
    return tuple(found.shape[1:])
