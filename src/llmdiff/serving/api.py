"""The image API: OpenAI's `POST /v1/images/generations` and what a server needs beside it."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from llmdiff import __version__
from llmdiff.drawing import DrawingSettings, new_seed
from llmdiff.errors import LLMDiffError
from llmdiff.serving.batching import Batcher, ClosingError, Painter, QueueFullError
from llmdiff.serving.errors import ApiError, ErrorReply, from_library, install_error_handlers
from llmdiff.serving.guard import Guard, log_fields
from llmdiff.serving.logs import log
from llmdiff.serving.metrics import Metrics
from llmdiff.serving.openapi_page import install_openapi
from llmdiff.serving.painter import check_size
from llmdiff.serving.picture_store import PictureStore
from llmdiff.serving.schemas import ImageReply, ImageRequest, Model, ModelList, Picture, Status
from llmdiff.serving.settings import ServeSettings

_LOADING_RETRY_S = 5


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
                f"the server is {word}: try again in {_LOADING_RETRY_S} seconds",
                code=word,
                headers={"Retry-After": str(_LOADING_RETRY_S)},
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


def create_app(
    load: Callable[[], SizedPainter],
    settings: ServeSettings,
    *,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the server's app; its `state.service` is the `ImageService`.

    `load` runs in the drawing thread when the app starts; until it returns, the app answers that it loads.
    `on_failure` is called if it raises.
    """
    service = ImageService(load, settings, on_failure)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="LLMDiff",
        version=__version__,
        description="Pictures drawn with a decoder-only LLM in control of a diffusion model.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    install_error_handlers(app)
    _install_routes(app, service)
    install_openapi(app, needs_token=settings.token is not None)
    app.add_middleware(
        Guard,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        token=settings.token,
        open_paths=("/health",),
        metrics=service.metrics,
    )
    return app


def _install_routes(app: FastAPI, service: ImageService) -> None:
    settings = service.settings

    def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
        return {code: {"model": ErrorReply} for code in codes}

    @app.post(
        "/v1/images/generations",
        response_model_exclude_none=True,
        responses=errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
    )
    async def generate(asked: ImageRequest, request: Request) -> ImageReply:
        """Draw a prompt."""
        order = service.order(asked)
        fields = log_fields(request.scope)
        fields.update(pictures=order.number, steps=order.steps, seed=order.seed)
        if settings.log_prompts:
            fields.update(prompt=order.prompt, negative_prompt=order.negative_prompt)
        pngs = await _while_connected(request, service.batcher.draw(order), settings.timeout_s)
        data = []
        for seed, png in zip(order.seeds, pngs, strict=True):
            if asked.response_format == "b64_json":
                data.append(Picture(b64_json=base64.b64encode(png).decode(), seed=seed))
            else:
                base_url = settings.public_url or str(request.base_url)
                url = f"{base_url.rstrip('/')}/v1/images/files/{service.store.add(png)}.png"
                data.append(Picture(url=url, seed=seed))
        return ImageReply(created=int(time.time()), data=data)

    @app.get(
        "/v1/images/files/{name}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **errors(401, 404)},
    )
    async def file(name: str) -> Response:
        """A picture that `generations` gave the URL of."""
        png = service.store.get(name)
        if png is None:
            raise ApiError(
                404,
                "there is no such picture, or it has expired: draw it again from its seed",
                code="not_found",
            )
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, immutable"})

    @app.get("/v1/models", responses=errors(401))
    async def models() -> ModelList:
        """The models that can be asked for."""
        return ModelList(data=[Model(id=settings.model_id, created=service.started)])

    @app.get("/v1/models/{model_id:path}", responses=errors(401, 404))
    async def model(model_id: str) -> Model:
        """One model."""
        service.check_model(model_id)
        return Model(id=settings.model_id, created=service.started)

    @app.get("/health")
    async def health() -> Status:
        """Whether the server answers; needs no key."""
        return Status(status="ok")

    @app.get("/ready", responses=errors(401, 503))
    async def ready() -> Status:
        """Whether the models are loaded and new requests are taken."""
        service.painter()
        return Status(status="ready")

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **errors(401)}
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _while_connected(
    request: Request, drawing: Coroutine[Any, Any, list[bytes]], timeout_s: float
) -> list[bytes]:
    """Return what the coroutine returns; it is cancelled if the client leaves or the time is up.

    Raises:
        ApiError: 429, 499 (to nobody), 503 or 504.
    """
    work = asyncio.ensure_future(drawing)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ApiError(499, "the client left", code="client_closed_request")
        raise ApiError(504, f"not drawn within {timeout_s:g} seconds: ask for less, or later", code="timeout")
    except QueueFullError as error:
        headers = {"Retry-After": str(error.retry_after_s)}
        raise ApiError(429, str(error), code="queue_full", headers=headers) from error
    except ClosingError as error:
        headers = {"Retry-After": str(_LOADING_RETRY_S)}
        raise ApiError(503, str(error), code="closing", headers=headers) from error
    except LLMDiffError as error:
        raise from_library(error) from error
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
