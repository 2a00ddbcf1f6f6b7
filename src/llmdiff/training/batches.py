"""Batches of training samples: each sample exactly once per epoch, and prefetching in threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Batches of samples of one bucket each, in an order that depends on seed and epoch only.

    Every epoch has every sample exactly once, so the last batch of a bucket may be a smaller one.
    """

    rows: Tensor
    batch_size: int
    seed: int
    _members: list[np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        buckets = self.rows[:, 3].numpy()
        members = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        object.__setattr__(self, "_members", members)

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in every epoch."""
        return sum(-(-len(members) // self.batch_size) for members in self._members)

    def batch(self, number: int) -> list[int]:
        """Return the samples of a batch, counted from the first of epoch 0."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _epoch(self, epoch: int) -> list[list[int]]:
        kept: tuple[int, list[list[int]]] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([self.seed, 13, epoch])
            shuffled = [rng.permutation(members) for members in self._members]
            batches = [
                part[start : start + self.batch_size].tolist()
                for part in shuffled
                for start in range(0, len(part), self.batch_size)
            ]
            kept = epoch, [batches[place] for place in rng.permutation(len(batches))]
            object.__setattr__(self, "_kept", kept)
        return kept[1]


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
