"""A bounded queue of orders, drawn one batch at a time; compatible orders share a batch."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

from llmdiff.drawing.draw import DrawingSettings
from llmdiff.errors import LLMDiffError
from llmdiff.serving.logs import log
from llmdiff.serving.metrics import Metrics


class Painter(Protocol):
    """Whatever draws: settings that differ in their prompts only, one seed for each => PNG files."""

    def draw(
        self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Callable[[], None]
    ) -> list[bytes]:
        """Return a PNG for each of the settings; `on_step` is called after every denoising step."""
        ...


class QueueFullError(LLMDiffError):
    """As many requests wait as may. `retry_after_s`: about when there is room again."""

    def __init__(self, queue_size: int, retry_after_s: int) -> None:
        super().__init__(f"{queue_size} requests wait already: try again in {retry_after_s} seconds")
        self.retry_after_s = retry_after_s


class ClosingError(LLMDiffError):
    """The server finishes what it has and takes nothing new."""


class _AbandonedError(Exception):
    """Nobody wants any picture of the batch any more."""


class _Order:
    """One request: `settings.number` pictures from seeds in a row."""

    def __init__(self, settings: DrawingSettings) -> None:
        self.settings = settings
        self.pictures: dict[int, bytes] = {}
        self.started = 0
        self.done: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    @property
    def key(self) -> tuple[object, ...]:
        """Alike for orders that can be drawn in one pass: all but prompt, picture and seed are the same."""
        one = self.settings
        size_px = (one.height_px, one.width_px)
        strength = getattr(one, "strength", None)  # of orders to draw on a picture
        return (one.steps, one.guidance_scale, size_px, one.negative_prompt is None, strength)

    @property
    def wanted(self) -> bool:
        return not self.done.done()

    def finish(self, seed: int, png: bytes) -> None:
        self.pictures[seed] = png
        if self.wanted and len(self.pictures) == self.settings.number:
            self.done.set_result([self.pictures[seed] for seed in self.settings.seeds])

    def fail(self, error: Exception) -> None:
        if self.wanted:
            self.done.set_exception(error)


_Batch = list[tuple[_Order, int]]


class Batcher:
    """Draws orders first come, first served; the first in line takes along those that fit its batch.

    Nothing waits for a batch to fill: a lone order is drawn at once, batches form while another is drawn.
    Everything here runs on one event loop, only `Painter.draw` in the executor, so nothing needs a lock.
    """

    def __init__(self, *, max_batch: int, queue_size: int, metrics: Metrics) -> None:
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._metrics = metrics
        self._orders: deque[_Order] = deque()
        self._current: _Batch = []
        self._arrived = asyncio.Event()
        self._picture_s = 1.0
        self.closing = False
        metrics.queue_size.set(queue_size)

    async def draw(self, settings: DrawingSettings) -> list[bytes]:
        """Return the order's pictures as PNG files; cancelling this call abandons them.

        Raises:
            QueueFullError: too many orders wait.
            ClosingError: the server is about to end.
            LLMDiffError: the order cannot be drawn.
        """
        if self.closing:
            raise ClosingError("the server is about to end and takes no new requests: try another, or later")
        if sum(order.started == 0 for order in self._orders) >= self._queue_size:
            pictures = sum(order.settings.number - order.started for order in self._orders)
            wait_s = min(600, max(1, math.ceil(pictures * self._picture_s)))
            raise QueueFullError(self._queue_size, wait_s)
        order = _Order(settings)
        self._orders.append(order)
        self._count_waiting()
        self._arrived.set()
        try:
            return await order.done
        finally:
            # A future that is cancelled with its waiter counts as done: nobody wants it any more.
            if order in self._orders:
                self._orders.remove(order)
                self._count_waiting()

    async def run(self, painter: Painter, executor: Executor) -> None:
        """Draw whatever arrives, for ever; cancel it to end."""
        while True:
            while not self._orders:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._current = self._next_batch()
            if not batch:
                continue
            try:
                await self._draw(batch, painter, executor)
            except LLMDiffError as error:
                await self._one_by_one(batch, error, painter, executor)
            except Exception as error:
                log("drawing failed", level=40, error=error)
                self._fail(batch, error)

    def abandon_all(self) -> None:
        """Give up every order, the one that is drawn at its next step."""
        self.closing = True
        for order in [*self._orders, *(order for order, _ in self._current)]:
            order.fail(ClosingError("the server has ended: try again later"))

    def _next_batch(self) -> _Batch:
        batch: _Batch = []
        self._orders = deque(order for order in self._orders if order.wanted)
        key = self._orders[0].key if self._orders else None
        for order in list(self._orders):
            if order.key == key:
                count = min(self._max_batch - len(batch), order.settings.number - order.started)
                first = order.settings.seed + order.started
                batch += [(order, seed) for seed in range(first, first + count)]
                order.started += count
                if order.started == order.settings.number:
                    self._orders.remove(order)
        self._count_waiting()
        return batch

    async def _draw(self, batch: _Batch, painter: Painter, executor: Executor) -> None:
        def on_step() -> None:
            if not any(order.wanted for order, _ in batch):
                raise _AbandonedError

        settings = [order.settings for order, _ in batch]
        seeds = [seed for _, seed in batch]
        began = time.monotonic()
        try:
            pictures = await asyncio.get_running_loop().run_in_executor(
                executor, lambda: painter.draw(settings, seeds, on_step=on_step)
            )
        except _AbandonedError:
            self._metrics.pictures.labels("abandoned").inc(len(batch))
            return
        elapsed_s = time.monotonic() - began
        # A moving average: good enough to tell those who are refused when to come back.
        self._picture_s += 0.2 * (elapsed_s / len(batch) - self._picture_s)
        self._metrics.drawing_seconds.observe(elapsed_s)
        self._metrics.batch_pictures.observe(len(batch))
        for (order, seed), png in zip(batch, pictures, strict=True):
            self._metrics.pictures.labels("drawn" if order.wanted else "abandoned").inc()
            order.finish(seed, png)

    async def _one_by_one(
        self, batch: _Batch, error: LLMDiffError, painter: Painter, executor: Executor
    ) -> None:
        """Draw each picture alone after a batch failed: one bad prompt must not fail its neighbours."""
        if len(batch) == 1:
            self._fail(batch, error)
            return
        for picture in batch:
            try:
                await self._draw([picture], painter, executor)
            except Exception as alone:
                self._fail([picture], alone)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        self._metrics.pictures.labels("failed").inc(len(batch))
        for order, _ in batch:
            order.fail(error)

    def _count_waiting(self) -> None:
        self._metrics.waiting.set(sum(order.started == 0 for order in self._orders))
