"""Load batches of training samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.data import Samples
from llmdiff.training.denoise import Sizes, encode_pictures

CaptionReader = Callable[[list[str]], Any]
"""Captions => their reading by the frozen part of a `Stage`."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one shape. Shapes: pictures (B, 3, H, W) in -1..1, or stored latents (B, C, h, w)."""

    pictures: Tensor
    sizes: list[Sizes]
    reading: Any


class BatchLoader:
    """Load samples, and encode their pictures unless `latents` contains them."""

    def __init__(self, samples: Samples, vae: Any, latents: TensorStore | None) -> None:
        self._samples, self._vae, self._stored = samples, vae, latents

    def load(
        self,
        read: CaptionReader,
        indices: Sequence[int],
        rng: np.random.Generator,
        *,
        caption_dropout: float = 0.0,
    ) -> Batch:
        """Return a batch; replace captions by the empty one with probability `caption_dropout`."""
        samples = self._samples
        if self._stored is not None:
            texts = [samples.text(index, rng) for index in indices]
            pictures = [self._stored.get(samples.picture_name(index)) for index in indices]
            sizes = [samples.sizes(index) for index in indices]
        else:
            loaded = [samples.load(index, rng) for index in indices]
            pictures, texts, sizes = (list(part) for part in zip(*loaded, strict=True))
        dropped = rng.random(len(texts)) < caption_dropout
        texts = ["" if drop else text for drop, text in zip(dropped, texts, strict=True)]
        return Batch(pictures=torch.stack(pictures), sizes=sizes, reading=read(texts))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """Return a batch's latents on the VAE's device. Shapes: (B, C, h, w) float32."""
        if self._stored is not None:
            return batch.pictures.to(self._vae.device).float()
        return encode_pictures(self._vae, batch.pictures)
