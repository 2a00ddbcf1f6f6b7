"""What the image API's routes share: the models, the queue before them, the pictures behind URLs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol

from llmdiff.drawing.draw import DrawingSettings, new_seed
from llmdiff.serving.batching import Batcher, Painter
from llmdiff.serving.errors import ApiError
from llmdiff.serving.logs import log
from llmdiff.serving.metrics import Metrics
from llmdiff.serving.painter import check_size
from llmdiff.serving.picture_store import PictureStore
from llmdiff.serving.schemas import ImageRequest
from llmdiff.serving.settings import ServeSettings

RETRY_S = 5
"""Seconds after which a client may ask again while the server loads or ends."""


class SizedPainter(Painter, Protocol):
    """A painter that knows the (height, width) in pixels of a picture whose size nobody chose."""

    size_px: tuple[int, int]


class ImageService:
    """The models, the queue before them and the pictures behind URLs: all that the routes share.

    Fields:
        failure: why the models could not be loaded; None while they load and when they are.
    """

    def __init__(
        self,
        load: Callable[[], SizedPainter],
        settings: ServeSettings,
        on_failure: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.batcher = Batcher(
            max_batch=settings.max_batch, queue_size=settings.queue_size, metrics=self.metrics
        )
        self.store = PictureStore(max_bytes=settings.url_store_bytes, lifetime_s=settings.url_lifetime_s)
        self.started = int(time.time())
        self.failure: Exception | None = None
        self._load = load
        self._on_failure = on_failure
        self._painter: SizedPainter | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Return a context in which the models load and then draw; what is left at its end is given up."""
        # One thread for loading and drawing: a pipeline is for one at a time.
        with ThreadPoolExecutor(1, thread_name_prefix="drawing") as executor:
            worker = asyncio.create_task(self._work(executor))
            try:
                yield
            finally:
                self.batcher.abandon_all()
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)

    async def _work(self, executor: ThreadPoolExecutor) -> None:
        try:
            self._painter = await asyncio.get_running_loop().run_in_executor(executor, self._load)
        except Exception as error:
            self.failure = error
            log("models not loaded", level=40, error=error)
            self._on_failure()
            return
        self.metrics.ready.set(1)
        log("ready", model=self.settings.model_id, max_batch=self.settings.max_batch)
        await self.batcher.run(self._painter, executor)

    def painter(self) -> SizedPainter:
        """Return the painter.

        Raises:
            ApiError: 503, the models are not loaded yet, or the server is about to end.
        """
        if self._painter is None or self.batcher.closing:
            word = "closing" if self.batcher.closing else "loading"
            raise ApiError(
                503,
                f"the server is {word}: try again in {RETRY_S} seconds",
                code=word,
                headers={"Retry-After": str(RETRY_S)},
            )
        return self._painter

    def check_model(self, model_id: str | None) -> None:
        """Return nothing if there is such a model.

        Raises:
            ApiError: 404, there is none.
        """
        if model_id not in (None, self.settings.model_id):
            raise ApiError(
                404,
                f"there is no such model here, expected {self.settings.model_id!r}: see /v1/models",
                code="model_not_found",
                param="model",
            )

    def order(self, asked: ImageRequest) -> DrawingSettings:
        """Return what to draw.

        Raises:
            ApiError: the model, the size or the number of steps is not to be had here.
            LLMDiffError: the prompt is blank or a number is out of range.
        """
        painter = self.painter()
        self.check_model(asked.model)
        if asked.num_inference_steps > self.settings.max_steps:
            raise ApiError(
                400,
                f"num_inference_steps is {asked.num_inference_steps}, expected at most "
                f"{self.settings.max_steps}",
                code="invalid_value",
                param="num_inference_steps",
            )
        height_px = width_px = None
        if asked.size not in (None, "auto"):
            width_px, height_px = (int(side) for side in str(asked.size).split("x"))
        settings = DrawingSettings(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            seed=new_seed() if asked.seed is None else asked.seed,
            number=asked.n or 1,
            steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            height_px=height_px,
            width_px=width_px,
        )
        return check_size(settings, painter.size_px, self.settings.max_pixels)
