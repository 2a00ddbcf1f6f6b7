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


class Drawer(Protocol):
    """Draws PNG files from settings that differ only in their prompts, with one seed for each."""

    def draw(
        self, settings: Sequence[DrawingSettings], seeds: Sequence[int], *, on_step: Callable[[], None]
    ) -> list[bytes]:
        """Return a PNG for each of the settings; `on_step` is called after every denoising step."""
        ...


class QueueFullError(LLMDiffError):
    """The queue is full. `retry_after_s`: the estimated time until there is room."""

    def __init__(self, queue_size: int, retry_after_s: int) -> None:
        super().__init__(f"{queue_size} requests are waiting: try again in {retry_after_s} seconds")
        self.retry_after_s = retry_after_s


class ClosingError(LLMDiffError):
    """The server is shutting down: it finishes the accepted orders and accepts no new ones."""


class _AbandonedError(Exception):
    """All orders of the batch were cancelled."""


class _Order:
    """One request: `settings.number` pictures from seeds in a row."""

    def __init__(self, settings: DrawingSettings) -> None:
        self.settings = settings
        self.pictures: dict[int, bytes] = {}
        self.started = 0
        self.done: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    @property
    def key(self) -> tuple[object, ...]:
        """Return the settings that orders of one batch must share: all but prompt, picture and seed."""
        one = self.settings
        size_px = (one.height_px, one.width_px)
        strength = getattr(one, "strength", None)  # of edits
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
    """Draws orders first come, first served; compatible later orders join the batch of the first.

    Orders do not wait for a batch to fill: a single order is drawn at once, and batches form while another is drawn.
    All code runs on one event loop except `Drawer.draw`, which runs in the executor, so no lock is needed.
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
            ClosingError: the server is shutting down.
            LLMDiffError: the order cannot be drawn.
        """
        if self.closing:
            raise ClosingError("the server is shutting down and accepts no new requests: try again later")
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
            # A future that is cancelled with its waiter counts as done.
            if order in self._orders:
                self._orders.remove(order)
                self._count_waiting()

    async def run(self, drawer: Drawer, executor: Executor) -> None:
        """Draw incoming orders until cancelled."""
        while True:
            while not self._orders:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._current = self._next_batch()
            if not batch:
                continue
            try:
                await self._draw(batch, drawer, executor)
            except LLMDiffError as error:
                await self._one_by_one(batch, error, drawer, executor)
            except Exception as error:
                log("drawing failed", level=40, error=error)
                self._fail(batch, error)

    def abandon_all(self) -> None:
        """Fail every order; the one being drawn stops at its next step."""
        self.closing = True
        for order in [*self._orders, *(order for order, _ in self._current)]:
            order.fail(ClosingError("the server has shut down: try again later"))

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

    async def _draw(self, batch: _Batch, drawer: Drawer, executor: Executor) -> None:
        def on_step() -> None:
            if not any(order.wanted for order, _ in batch):
                raise _AbandonedError

        settings = [order.settings for order, _ in batch]
        seeds = [seed for _, seed in batch]
        began = time.monotonic()
        try:
            pictures = await asyncio.get_running_loop().run_in_executor(
                executor, lambda: drawer.draw(settings, seeds, on_step=on_step)
            )
        except _AbandonedError:
            self._metrics.pictures.labels("abandoned").inc(len(batch))
            return
        elapsed_s = time.monotonic() - began
        # A moving average, to estimate when rejected clients should retry.
        self._picture_s += 0.2 * (elapsed_s / len(batch) - self._picture_s)
        self._metrics.drawing_seconds.observe(elapsed_s)
        self._metrics.batch_pictures.observe(len(batch))
        for (order, seed), png in zip(batch, pictures, strict=True):
            self._metrics.pictures.labels("drawn" if order.wanted else "abandoned").inc()
            order.finish(seed, png)

    async def _one_by_one(
        self, batch: _Batch, error: LLMDiffError, drawer: Drawer, executor: Executor
    ) -> None:
        """Draw each picture alone after a batch failed, so that one bad prompt does not fail the others."""
        if len(batch) == 1:
            self._fail(batch, error)
            return
        for picture in batch:
            try:
                await self._draw([picture], drawer, executor)
            except Exception as alone:
                self._fail([picture], alone)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        self._metrics.pictures.labels("failed").inc(len(batch))
        for order, _ in batch:
            order.fail(error)

    def _count_waiting(self) -> None:
        self._metrics.waiting.set(sum(order.started == 0 for order in self._orders))
