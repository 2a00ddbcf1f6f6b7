"""Captions with their scenes, and what the base says of them: what all that is trained on scenes shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from llmdiff.adapter.base_encoder import BaseTexts, encode_with_base
from llmdiff.openmoji.captions import Wording
from llmdiff.training.bank import in_batches
from llmdiff.training.warm_start import BaseQueries, draw_queries
from llmdiff_lab.world_build.dataset import SceneData
from llmdiff_lab.world_build.presets import Preset

_QUERY_CAPTIONS, _BATCH = 256, 64


@dataclass(frozen=True, kw_only=True)
class CaptionedScenes:
    """Captions with the scenes they were written for; the last caption is the empty one, for guidance.

    `plain` says the same as `captions`, as the base was taught to read it.
    """

    captions: tuple[str, ...]
    plain: tuple[str, ...]
    scenes: np.ndarray

    @classmethod
    def draw(cls, data: SceneData, count: int, seed: int, wording: Wording = "training") -> "CaptionedScenes":
        """Return a fresh caption for each of `count` scenes, the same for the same seed and wording."""
        rng = np.random.default_rng([seed, 9])
        scenes = rng.permutation(len(data.contents))[:count]
        captions = data.captions(scenes, rng, wording)
        plain = data.captions(scenes, rng, "plain") if wording == "reworded" else captions
        return cls(captions=(*captions, ""), plain=(*plain, ""), scenes=scenes)

    def first(self, count: int) -> "CaptionedScenes":
        """Return the first `count` of them, and the empty one."""
        return CaptionedScenes(
            captions=(*self.captions[:-1][:count], ""),
            plain=(*self.plain[:-1][:count], ""),
            scenes=self.scenes,
        )

    def batch(
        self, size: int, dropout: float, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the captions (some replaced by the empty one, index `count`) and of their scenes."""
        chosen = rng.integers(count, size=size)
        kept = rng.random(size) >= dropout
        return np.where(kept, chosen, count), self.scenes[chosen]


class Teacher:
    """The base's text states of captions, and what its attention layers ask while it draws some of them.

    Both are computed when they are first asked for, and kept: 13 kB a caption for the embedded default.
    """

    def __init__(self, pipe: StableDiffusionPipeline, captions: Sequence[str], *, seed: int) -> None:
        """`captions` are those that are asked for later; the first 256 are drawn, with noise from `seed`."""
        self.pipe, self.seed = pipe, seed
        self._first = list(captions[:_QUERY_CAPTIONS])
        self._rows = {text: row for row, text in enumerate(dict.fromkeys(captions))}

    @cached_property
    def queries(self) -> BaseQueries:
        """What the layers ask."""
        return draw_queries(self.pipe, self._first, seed=self.seed)

    @cached_property
    def _states(self) -> Tensor:
        """Shapes: (different captions, T, W) float16."""
        parts = in_batches(list(self._rows), batch=_BATCH, title="base's text states")
        with torch.no_grad():
            return torch.cat([encode_with_base(self.pipe, part).states.half().cpu() for part in parts])

    def texts(self, captions: Sequence[str]) -> BaseTexts:
        """Return the base's own encoding of some of the captions. Shapes: (B, T, W).

        Raises:
            KeyError: a caption that is not among them.
        """
        states = self._states[[self._rows[text] for text in captions]]
        return BaseTexts(states=states.to(self.pipe.device, self.pipe.dtype), mask=None, pooled=None)


def create_teacher(preset: Preset, data: SceneData, pipe: StableDiffusionPipeline) -> Teacher:
    """Return what the base says of all captions of a training with this preset."""
    captioned = CaptionedScenes.draw(data, preset.adapter_captions, preset.seed, preset.adapter_wording)
    return Teacher(pipe, captioned.plain, seed=preset.seed)
