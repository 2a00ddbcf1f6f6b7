"""Train an adapter from text alone to match the attention outputs of the base's own text encoder.

For queries z from the base's attention layers, recorded while it draws from noise, and a caption y,

    loss = mean over layers of  |TwoBranch(z, c(y)) - Attn(z, base text states(y))|^2  /  variance of the latter

A step runs only the denoiser's text attention, on a few positions, and costs a small part of a step on pictures. The
adapter then matches the base's encoder on these captions, and steps on pictures can teach it what that encoder cannot
do. Another adapter may be the target instead of the base's text encoder (`target`), as when an adapter is ported to
another LLM.

Source: ours. A regression of a frozen layer's outputs, as in FitNets (Romero et al. 2015, arXiv 1412.6550).
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from llmdiff.adapter import families, layers
from llmdiff.adapter.attach import is_attached
from llmdiff.adapter.base_encoder import encode_with_base, has_text_encoder
from llmdiff.errors import UnsupportedPipelineError
from llmdiff.language.digests import model_digest
from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.conditioning import Conditioned, Conditioning
from llmdiff.training.loop import StepPart, train
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.optimizers import LrScale
from llmdiff.training.processes import attention_kernel

FromCaptions = Callable[[Sequence[int], torch.Generator], Conditioned]
"""Indices of captions => `encoder_hidden_states` and a pooled vector or None; the generator is for noise."""

Target = Callable[[Sequence[int], Mapping[str, Tensor]], tuple[Mapping[str, Tensor], Tensor | None]]
"""Indices of captions, and queries by layer name => target output of each layer, and a pooled vector or None."""

POSITIONS = 16
"""Number of image states kept as queries for each picture and step."""

# Variance of a layer below which its errors count less, as a share of the layers' mean variance.
_LEAST_VARIANCE = 0.02
_DRAWN_TOGETHER = 16
_SORTED_TOGETHER = 16  # number of batches


@dataclass(frozen=True, kw_only=True)
class BaseQueries:
    """Image states at the base's text attention, recorded while the base draws, and their timesteps.

    Shapes: states[layer] (pictures x steps, positions, width of the layer) float16; timesteps (pictures x steps,).
    """

    states: Mapping[str, Tensor]
    timesteps: Tensor

    def __len__(self) -> int:
        return len(next(iter(self.states.values())))


@torch.no_grad()
def draw_queries(
    pipe: Any,
    captions: Sequence[str],
    *,
    steps: int = 8,
    positions: int = POSITIONS,
    seed: int = 0,
    **drawing: Any,
) -> BaseQueries:
    """Draw pictures of these captions with the base in `steps` steps and return the recorded queries.

    `drawing` is passed to the pipeline, such as height and width if the training's differ from its defaults.

    Raises:
        UnsupportedPipelineError: the base has no text encoder, or no cross-attention that reads its states.
    """
    check_warm_start(pipe)
    met: dict[str, list[Tensor]] = {}
    timesteps: list[Tensor] = []
    generator = torch.Generator().manual_seed(seed)

    def keep(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        chosen = torch.randint(states.shape[1], (positions,), generator=generator)
        met.setdefault(name, []).append(states[:, chosen.to(states.device)].half().cpu())

    denoiser = families.denoiser_of(pipe)

    def keep_timestep(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = inspect.signature(type(denoiser).forward).bind_partial(denoiser, *args, **kwargs).arguments
        rows = len(next(given[name] for name in ("sample", "hidden_states") if name in given))
        timesteps.append(torch.as_tensor(given["timestep"]).float().cpu().expand(rows))

    handles = [
        attn.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: keep(name, args, kwargs), with_kwargs=True
        )
        for name, attn in layers.text_layers(denoiser).items()
    ]
    handles.append(
        denoiser.register_forward_pre_hook(
            lambda _, args, kwargs: keep_timestep(args, kwargs), with_kwargs=True
        )
    )
    try:
        with tqdm(total=len(captions), desc="base's queries", mininterval=5) as bar:
            for start in range(0, len(captions), _DRAWN_TOGETHER):
                part = list(captions[start : start + _DRAWN_TOGETHER])
                pipe(
                    part,
                    num_inference_steps=steps,
                    guidance_scale=1.0,
                    generator=torch.Generator().manual_seed(seed + 1 + start),
                    output_type="latent",
                    **drawing,
                )
                bar.update(len(part))
    finally:
        for handle in handles:
            handle.remove()
    return BaseQueries(
        states={name: torch.cat(parts) for name, parts in met.items()}, timesteps=torch.cat(timesteps)
    )


def stored_queries(store: Path, pipe: Any, captions: Sequence[str], **drawing: Any) -> BaseQueries:
    """Return the result of `draw_queries` with these arguments, cached in the store for this base."""
    denoiser = families.denoiser_of(pipe)
    drawn_from = json.dumps([model_digest(denoiser), list(captions), drawing], sort_keys=True)
    kept = TensorStore(store / "queries" / sha256(drawn_from.encode()).hexdigest()[:32])
    names = list(layers.text_layers(denoiser))
    if kept.missing([*names, "timesteps"]):
        queries = draw_queries(pipe, captions, **drawing)
        kept.put({**queries.states, "timesteps": queries.timesteps})
    return BaseQueries(states={name: kept.get(name) for name in names}, timesteps=kept.get("timesteps"))


def warm_start(
    pipe: Any,
    conditioning: Conditioning,
    captions: Sequence[str],
    conditioned: FromCaptions,
    queries: Callable[[], BaseQueries],
    config: LoopConfig,
    folder: Path,
    *,
    batch_size: int,
    caption_dropout: float = 0.0,
    lengths: Sequence[int] | None = None,
    target: Target | None = None,
    lr_scale: LrScale = lambda name: (1.0, 1.0),
    muon: Callable[[str], bool] = lambda name: False,
    title: str = "warm start",
    must_match: Mapping[str, Any] | None = None,
) -> None:
    """Train the parameters of `conditioning` that require gradients on captions alone; resumable like `train`.

    `captions` are for the base's own text encoder, and may be plain wordings of those behind `conditioned`, which
    gives the states that the denoiser's text attention reads while the conditioning is installed. With probability
    `caption_dropout` the last caption replaces a random one. A batch has captions of similar `lengths`, by default
    those of `captions`, so that little of it is padding. `queries` is called when the first step needs them.
    `target` gives the outputs to match, by default those of the base's own text encoder; a pooled vector, if the base
    has one, is fitted too.

    Raises:
        UnsupportedPipelineError: see `draw_queries`.
        LLMDiffError: see `train`.
    """
    learn_from = target or base_target(pipe, captions)
    denoiser: Any = families.denoiser_of(pipe)
    text_layers: Mapping[str, Any] = layers.text_layers(denoiser)

    @cache
    def asked() -> BaseQueries:
        with stored_as_they_are(denoiser.device):
            return queries()

    sizes = np.array([*map(len, captions)] if lengths is None else lengths)

    def step_loss(part: StepPart) -> tuple[Tensor, Mapping[str, float]]:
        rng = part.rng(config.seed, 15)
        dropped = rng.random(batch_size) < caption_dropout
        chosen = alike_batch(sizes, batch_size, config.seed, part.number)
        indices = np.where(dropped, len(captions) - 1, chosen).tolist()
        rows = torch.from_numpy(rng.integers(len(asked()), size=batch_size))
        put = {name: asked().states[name][rows].to(denoiser.device, denoiser.dtype) for name in text_layers}
        # Installed modules may change the base's layers (LoRA): compute the target without them.
        with torch.no_grad():
            wanted, wanted_pooled = learn_from(indices, put)
        with conditioning.installed(denoiser), attention_kernel(denoiser.device):
            states, pooled = conditioned(indices, part.generator)
            read, mask = conditioning.layer_inputs(states, asked().timesteps[rows].to(states.device))
            seen = {
                "encoder_hidden_states": read.to(denoiser.device, denoiser.dtype),
                "attention_mask": None if mask is None else mask.to(denoiser.device, denoiser.dtype),
            }
            given = {name: attn(put[name], **seen).float() for name, attn in text_layers.items()}
        loss = unexplained(given, wanted)
        figures = {"unexplained": float(loss.detach())}
        if pooled is not None and wanted_pooled is not None:
            wrong = F.mse_loss(pooled.float(), wanted_pooled.float()) / wanted_pooled.float().var()
            figures["unexplained_pooled"] = float(wrong.detach())
            loss = loss + wrong
        return loss, figures

    train(
        conditioning.modules,
        step_loss,
        config,
        folder,
        title=title,
        lr_scale=lr_scale,
        muon=muon,
        must_match=must_match,
    )


def stored_as_they_are(device: torch.device) -> torch.autocast:
    """Return a context without autocast: on a CPU it cannot join stored float16 values in a run in bfloat16."""
    return torch.autocast(device.type, enabled=False)


def alike_batch(lengths: NDArray[np.int64], batch_size: int, seed: int, number: int) -> NDArray[np.int64]:
    """Return the indices of the captions of batch `number`, uniform over all captions, of similar length in a batch.

    The captions of several batches, at most a quarter of all captions so that the same ones seldom meet, are drawn
    together without repetition, sorted by length and cut into batches, in random order.
    """
    together = max(1, min(_SORTED_TOGETHER, len(lengths) // (4 * batch_size)))
    window, place = divmod(number, together)
    rng = np.random.default_rng([seed, 16, window])
    drawn = rng.choice(len(lengths), together * batch_size, replace=batch_size > len(lengths))
    batches = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(together, batch_size)
    batch: NDArray[np.int64] = batches[rng.permutation(together)[place]]
    return batch


def base_target(pipe: Any, captions: Sequence[str]) -> Target:
    """Return the target function of the base: its layers' outputs with its own text encoder.

    Raises:
        UnsupportedPipelineError: see `draw_queries`.
    """
    check_warm_start(pipe)
    text_layers: Mapping[str, Any] = layers.text_layers(families.denoiser_of(pipe))

    def target(
        indices: Sequence[int], put: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Tensor | None]:
        base = encode_with_base(pipe, [captions[i] for i in indices])
        return {
            name: attn(put[name], encoder_hidden_states=base.states.to(put[name])).float()
            for name, attn in text_layers.items()
        }, base.pooled

    return target


def unexplained(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return the unexplained share of the variance of the layers' target outputs, the mean over the layers.

    A layer's share is mean squared error / variance. A layer that varies far less than the others counts less: it
    adds little to the denoiser's states, and what it adds are a few outliers.
    """
    errors = torch.stack([(given[name] - wanted[name]).square().mean() for name in wanted])
    variances = torch.stack([(one - one.mean((0, 1))).square().mean() for one in wanted.values()])
    least = (_LEAST_VARIANCE * variances.mean()).clamp(min=1e-12)
    share: Tensor = (errors / variances.clamp(min=least)).mean()
    return share


def check_warm_start(pipe: Any) -> None:
    """Check that a pipeline's text attention can be trained on captions alone.

    Raises:
        UnsupportedPipelineError: it has no text encoder, or no cross-attention that reads its states.
    """
    family = families.family_of(pipe)
    reads_text = is_attached(pipe) or has_text_encoder(pipe)
    if family.text_channel != "states" or not reads_text:
        raise UnsupportedPipelineError(
            f"a warm start needs cross-attention that reads a text encoder's states directly, and "
            f"{type(pipe).__name__} ({family.title}) as loaded has none: train it on pictures from the start"
        )
