"""What classifier-free guidance makes of a system of a benchmark, measured against the base's own text encoder."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdiff.adapter.families import denoiser_of
from llmdiff.evaluation.suites.scenes import ScenePrompt
from llmdiff.training.denoise import encode_pictures
from llmdiff.training.objective import Objective

FIGURES = {
    "loss": "denoising loss",
    "caption gap": "caption, %",
    "blank gap": "blank, %",
    "guidance gap": "guidance, %",
    "cosine": "cosine of guidance",
    "strength": "length of guidance",
}
"""What `guidance_figures` returns, with the heads of a table's columns."""
_LEVELS, _BATCH = 8, 16


@torch.no_grad()
def predictions(
    pipe: Any, attached: Callable[[], AbstractContextManager[Any]], rows: Sequence[ScenePrompt]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the denoiser predicts for the noisy scenes of the prompts, and the targets.

    Noise and noise levels of a scene are the same for every system: 8 levels, evenly over the schedule.

    Shapes: under the caption, under the blank prompt, targets: (levels, rows, C, h, w) each.
    """
    objective, denoiser = Objective.of(pipe.scheduler), denoiser_of(pipe)
    pixels = (
        torch.from_numpy(np.stack([row.render() for row in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1
    )
    latents = encode_pictures(pipe.vae, pixels)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    found: list[list[Tensor]] = [[], [], []]
    with attached():
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            prompts = [row.prompt for row in rows[part]]
            both = pipe.encode_prompt(prompts, denoiser.device, 1, True)
            sides: list[list[Tensor]] = [[], [], []]
            for level in range(_LEVELS):
                share = torch.full((len(prompts),), (level + 0.5) / _LEVELS)
                noised = objective.noised_at(latents[part], noise[part], share)
                for side, states in zip(sides[:2], both, strict=True):
                    side.append(denoiser(noised.latents, noised.timesteps, states, return_dict=False)[0])
                sides[2].append(noised.target)
            for whole, side in zip(found, sides, strict=True):
                whole.append(torch.stack(side))
    caption, blank, target = (torch.cat(parts, dim=1).float() for parts in found)
    return caption, blank, target


def guidance_figures(
    system: tuple[Tensor, Tensor, Tensor], base: tuple[Tensor, Tensor, Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Return the figures of every scene. Shapes: arguments see `predictions`; (rows,) each.

    With the guidance d = caption - blank, and sums over all levels and latents of a scene:

        caption gap:   |caption - base's|^2 / |base's d|^2
        blank gap:     |blank - base's|^2 / |base's d|^2
        guidance gap:  |d - base's d|^2 / |base's d|^2
        cosine, strength:  of d with the base's d, and |d| / |base's d|

    "loss" is the denoising loss under the caption. It sees the caption's prediction alone, not that under the blank
    prompt, from which guidance steps away.
    """
    caption, blank, target = system
    guidance, wanted = caption - blank, base[0] - base[1]
    whole = _squares(wanted)
    return {
        "loss": _squares(caption - target) / target[:, 0].numel(),
        "caption gap": _squares(caption - base[0]) / whole,
        "blank gap": _squares(blank - base[1]) / whole,
        "guidance gap": _squares(guidance - wanted) / whole,
        "cosine": _sums(guidance * wanted) / np.sqrt(_squares(guidance) * whole),
        "strength": np.sqrt(_squares(guidance) / whole),
    }


def _sums(values: Tensor) -> NDArray[np.float64]:
    """Return the sums over levels and latents: (levels, rows, C, h, w) => (rows,)."""
    sums: NDArray[np.float64] = values.double().sum(dim=(0, 2, 3, 4)).numpy()
    return sums


def _squares(values: Tensor) -> NDArray[np.float64]:
    return _sums(values.double().square())
