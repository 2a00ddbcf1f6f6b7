"""The state behind the image API's routes: the models, the request queue, the picture store."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from llmdiff.drawing.draw import DrawingSettings, new_seed
from llmdiff.serving.batching import Batcher, Drawer
from llmdiff.serving.editing import EditSettings, filled, open_upload
from llmdiff.serving.errors import ApiError, invalid_value
from llmdiff.serving.expiring_pictures import ExpiringPictures
from llmdiff.serving.logs import log
from llmdiff.serving.metrics import Metrics
from llmdiff.serving.schemas import Drawing, EditRequest
from llmdiff.serving.settings import ServeSettings
from llmdiff.serving.sizes import Sized, nearest_size, parse_size, with_size

RETRY_S = 5
"""Seconds after which a client may ask again while the server loads or ends."""


class SizedDrawer(Drawer, Sized, Protocol):
    """A drawer with its supported sizes and whether it supports edits."""

    can_edit: bool


class ImageService:
    """The models, the request queue and the picture store, shared by all routes.

    Fields:
        failure: why the models could not be loaded; None while they load and once they are loaded.
    """

    def __init__(
        self,
        load: Callable[[], SizedDrawer],
        settings: ServeSettings,
        on_failure: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.batcher = Batcher(
            max_batch=settings.max_batch, queue_size=settings.queue_size, metrics=self.metrics
        )
        self.store = ExpiringPictures(max_bytes=settings.url_store_bytes, lifetime_s=settings.url_lifetime_s)
        self.started = int(time.time())
        self.failure: Exception | None = None
        self._load = load
        self._on_failure = on_failure
        self._drawer: SizedDrawer | None = None
        # Decode one upload at a time: a small file may decode to 300 MB.
        self._opening = threading.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Return a context that loads the models and draws orders; on exit, it cancels the remaining orders."""
        # One thread for loading and drawing: pipelines are not thread-safe.
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
            self._drawer = await asyncio.get_running_loop().run_in_executor(executor, self._load)
        except Exception as error:
            self.failure = error
            log("models not loaded", level=40, error=error)
            self._on_failure()
            return
        self.metrics.ready.set(1)
        log("ready", model=self.settings.model_id, max_batch=self.settings.max_batch)
        await self.batcher.run(self._drawer, executor)

    def drawer(self) -> SizedDrawer:
        """Return the drawer.

        Raises:
            ApiError: 503, the models are not loaded yet, or the server is shutting down.
        """
        if self._drawer is None or self.batcher.closing:
            word = "closing" if self.batcher.closing else "loading"
            raise ApiError(
                503,
                f"the server is {word}: try again in {RETRY_S} seconds",
                code=word,
                headers={"Retry-After": str(RETRY_S)},
            )
        return self._drawer

    def check_model(self, model_id: str | None) -> None:
        """Check that the model exists.

        Raises:
            ApiError: 404, it does not exist.
        """
        if model_id is not None and model_id not in self.settings.models:
            raise ApiError(
                404,
                f"there is no such model here, expected {' or '.join(map(repr, self.settings.models))}: see "
                "/v1/models, or serve with --model-alias",
                code="model_not_found",
                param="model",
            )

    def order(self, asked: Drawing) -> DrawingSettings:
        """Return the drawing settings of a request.

        Raises:
            ApiError: the model or the number of steps is not available.
            LLMDiffError: the prompt is blank or a number is out of range.
        """
        drawer = self._checked(asked)
        size_px = parse_size(asked.size)
        if size_px is not None and self.settings.size_policy == "nearest":
            size_px = nearest_size(size_px, drawer)
        return with_size(DrawingSettings(**_settings(asked, size_px)), drawer, self.settings.max_pixels)

    def edit_order(self, asked: EditRequest, upload: bytes) -> EditSettings:
        """Return the settings of an edit; the default size has the picture's aspect ratio and the pipeline's pixels.

        Raises:
            ApiError: the upload is not a picture, or the pipeline does not support edits.
            LLMDiffError: the prompt is blank or a number is out of range.
        """
        drawer = self._checked(asked)
        if not drawer.can_edit:
            raise ApiError(400, "this server's pipeline does not support edits", code="unsupported")
        if int(asked.num_inference_steps * asked.strength) < 1:
            steps = asked.num_inference_steps
            raise invalid_value(
                "strength", f"strength is {asked.strength:g}, expected at least one of {steps} steps"
            )
        with self._opening:
            picture, sha256 = open_upload(upload)
            size_px = parse_size(asked.size)
            if size_px is None or self.settings.size_policy == "nearest":
                size_px = nearest_size(size_px or (picture.height, picture.width), drawer)
            settings = EditSettings(
                **_settings(asked, size_px), picture=picture, picture_sha256=sha256, strength=asked.strength
            )
            return filled(with_size(settings, drawer, self.settings.max_pixels))

    def _checked(self, asked: Drawing) -> SizedDrawer:
        drawer = self.drawer()
        self.check_model(asked.model)
        if asked.num_inference_steps > self.settings.max_steps:
            name, most = "num_inference_steps", self.settings.max_steps
            raise invalid_value(name, f"{name} is {asked.num_inference_steps}, expected at most {most}")
        if asked.output_format in (None, "png") and asked.output_compression not in (None, 100):
            raise invalid_value(
                "output_compression",
                f"output_compression is {asked.output_compression}, but png is lossless: use output_format "
                '"jpeg" or "webp"',
            )
        return drawer


def _settings(asked: Drawing, size_px: tuple[int, int] | None) -> dict[str, Any]:
    height_px, width_px = size_px or (None, None)
    return {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": new_seed() if asked.seed is None else asked.seed,
        "number": asked.n or 1,
        "steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "height_px": height_px,
        "width_px": width_px,
    }
