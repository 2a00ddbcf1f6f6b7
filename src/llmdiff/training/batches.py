"""Batches of training samples: each sample exactly once per epoch, loaded, and prefetched in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from llmdiff.language.tensor_store import TensorStore
from llmdiff.training.data import Samples
from llmdiff.training.denoise import Sizes, encode_pictures

T = TypeVar("T")

CaptionReader = Callable[[list[str]], Any]
"""Captions => their reading by the frozen part of a `Stage`."""


class Epochs:
    """Batches of samples of one bucket each, in an order that depends on seed and epoch only.

    Every epoch has every sample exactly once, so the last batch of a bucket may be a smaller one.
    """

    def __init__(self, *, rows: Tensor, batch_size: int, seed: int) -> None:
        self._batch_size, self._seed = batch_size, seed
        buckets = rows[:, 3].numpy()
        self._members = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        self.batches_per_epoch = sum(-(-len(members) // batch_size) for members in self._members)
        self._last: tuple[int, list[list[int]]] = -1, []

    def batch(self, number: int) -> list[int]:
        """Return the samples of a batch, counted from the first of epoch 0."""
        epoch, place = divmod(number, self.batches_per_epoch)
        last, batches = self._last
        if last != epoch:
            rng = np.random.default_rng([self._seed, 13, epoch])
            shuffled = [rng.permutation(members) for members in self._members]
            batches = [
                part[start : start + self._batch_size].tolist()
                for part in shuffled
                for start in range(0, len(part), self._batch_size)
            ]
            batches = [batches[place] for place in rng.permutation(len(batches))]
            self._last = epoch, batches
        return batches[place]


class Prefetcher(Generic[T]):
    """Compute values by number in threads before they are needed, for numbers in steps of `stride`.

    `ahead` values are computed in advance; with 0, each is computed on request. Numbers from `end` on are not
    computed in advance.
    """

    def __init__(
        self, make: Callable[[int], T], *, stride: int, ahead: int = 2, end: int | None = None
    ) -> None:
        self._make, self._stride, self._ahead, self._end = make, stride, ahead, end
        self._pool = ThreadPoolExecutor(max(1, ahead), thread_name_prefix="prefetch")
        self._waiting: dict[int, Future[T]] = {}

    def get(self, number: int) -> T:
        """Return a value and start computing the following ones.

        Raises:
            Exception: the exception raised by `make` in its thread.
        """
        if self._ahead == 0:
            return self._make(number)
        later = [number + step * self._stride for step in range(1, self._ahead + 1)]
        wanted = [number, *(one for one in later if self._end is None or one < self._end)]
        self._waiting = {one: self._waiting.get(one) or self._pool.submit(self._make, one) for one in wanted}
        return self._waiting.pop(number).result()

    def close(self) -> None:
        """Cancel values that are not started, and wait for the running ones."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting = {}


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
