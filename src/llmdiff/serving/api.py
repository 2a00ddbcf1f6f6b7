"""The image API: OpenAI's `POST /v1/images/generations`, edits, models, health and metrics."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from llmdiff import __version__
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.pictures import as_format
from llmdiff.errors import LLMDiffError
from llmdiff.serving.batching import ClosingError, QueueFullError
from llmdiff.serving.editing import FORM, MAX_FIELDS, read_form
from llmdiff.serving.errors import ApiError, ErrorReply, from_library, install_error_handlers
from llmdiff.serving.openapi_page import install_openapi
from llmdiff.serving.request_guard import RequestGuard, log_fields
from llmdiff.serving.schemas import Drawing, ImageReply, ImageRequest, Model, ModelList, Picture, Status
from llmdiff.serving.service import RETRY_S, ImageService, SizedDrawer
from llmdiff.serving.settings import ServeSettings

_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def create_app(
    load: Callable[[], SizedDrawer],
    settings: ServeSettings,
    *,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the server's app; its `state.service` is the `ImageService`.

    `load` runs in the drawing thread when the app starts; until it returns, requests are answered with 503.
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
        RequestGuard,
        max_body_bytes=settings.max_body_bytes,
        larger_bodies={"/v1/images/edits": settings.max_upload_bytes},
        body_timeout_s=settings.body_timeout_s,
        token=settings.token,
        hosts=settings.hosts,
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
    async def generate(asked: ImageRequest, request: Request, response: Response) -> ImageReply:
        """Draw a prompt."""
        return await _answer(service, asked, service.order(asked), request, response)

    @app.post(
        "/v1/images/edits",
        response_model_exclude_none=True,
        responses=errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
        },
    )
    async def edit(request: Request, response: Response) -> ImageReply:
        """Edit a picture by a prompt; takes a form with the picture as `image`."""
        async with request.form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS) as form:
            asked, upload = read_form(form)
        order = await asyncio.to_thread(service.edit_order, asked, upload)
        return await _answer(service, asked, order, request, response)

    @app.get(
        "/v1/images/files/{name}",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in _MEDIA_TYPES.values()}}, **errors(401, 404)},
    )
    async def file(name: str) -> Response:
        """Return a picture by the name in its URL."""
        found = service.store.get(name)
        if found is None:
            raise ApiError(
                404,
                "there is no such picture, or it has expired: draw it again from its seed",
                code="not_found",
            )
        kind = _MEDIA_TYPES[name.rpartition(".")[2]]
        return Response(found, media_type=kind, headers={"Cache-Control": "private, immutable"})

    @app.get("/v1/models", responses=errors(401))
    async def models() -> ModelList:
        """List the available models."""
        return ModelList(data=[Model(id=name, created=service.started) for name in settings.models])

    @app.get("/v1/models/{model_id:path}", responses=errors(401, 404))
    async def model(model_id: str) -> Model:
        """Describe one model."""
        service.check_model(model_id)
        return Model(id=model_id, created=service.started)

    @app.get("/health")
    async def health() -> Status:
        """Report that the server answers; needs no key."""
        return Status(status="ok")

    @app.get("/", include_in_schema=False)
    async def first_page() -> Response:
        return RedirectResponse("docs")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        # Browsers on /docs request one; answer without an error.
        return Response(status_code=204)

    @app.get("/ready", responses=errors(401, 503))
    async def ready() -> Status:
        """Report whether the models are loaded and requests are accepted."""
        service.drawer()
        return Status(status="ready")

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **errors(401)}
    )
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _answer(
    service: ImageService, asked: Drawing, order: DrawingSettings, request: Request, response: Response
) -> ImageReply:
    """Draw the pictures of an order and return them in the requested response format."""
    settings = service.settings
    fields = log_fields(request.scope)
    fields.update(pictures=order.number, steps=order.steps, seed=order.seed)
    if settings.log_prompts:
        fields.update(prompt=order.prompt, negative_prompt=order.negative_prompt)
    pngs = await _while_connected(request, service.batcher.draw(order), settings.timeout_s)
    kind = asked.output_format or "png"
    quality = 100 if asked.output_compression is None else asked.output_compression
    data = []
    for seed, png in zip(order.seeds, pngs, strict=True):
        content = png if kind == "png" else await asyncio.to_thread(as_format, png, kind, quality)
        if asked.as_base64:
            data.append(Picture(b64_json=base64.b64encode(content).decode(), seed=seed))
        else:
            base_url = settings.public_url or str(request.base_url)
            name = service.store.add(content, f".{kind}")
            data.append(Picture(url=f"{base_url.rstrip('/')}/v1/images/files/{name}", seed=seed))
    size = f"{order.width_px}x{order.height_px}"
    if asked.size not in (None, "auto", size):
        response.headers["X-Size-Asked"] = str(asked.size)
    return ImageReply(created=int(time.time()), data=data, size=size, output_format=kind)


async def _while_connected(
    request: Request, drawing: Coroutine[Any, Any, list[bytes]], timeout_s: float
) -> list[bytes]:
    """Await the coroutine and return its result; cancel it if the client disconnects or after the timeout.

    Raises:
        ApiError: 429, 499 (client closed the request), 503 or 504.
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
        headers = {"Retry-After": str(RETRY_S)}
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
