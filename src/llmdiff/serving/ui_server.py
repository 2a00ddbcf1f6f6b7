"""The page's server: allowed gradio routes, password, startup and shutdown."""

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from llmdiff.serving.errors import ApiError, error_response
from llmdiff.serving.logs import log
from llmdiff.serving.password_form import PasswordForm
from llmdiff.serving.request_guard import RequestGuard
from llmdiff.serving.server import listen, run_server
from llmdiff.serving.settings import UiSettings
from llmdiff.serving.studio import Studio
from llmdiff.serving.ui import add_page

_MAX_BODY_BYTES = 128 * 1024
_BODY_TIMEOUT_S = 20.0
_GRACE_S = 3.0
# The browser loads no external resources, whatever gradio's page requests, so the page works offline.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
# The routes that the page needs. Gradio's other routes (uploads, files, proxies, API calls) are blocked.
_OPEN = ("/", "/health", "/config", "/theme.css", "/favicon.ico")
_OPEN_BELOW = ("/pictures/", "/assets/", "/static/", "/svelte/")
# `run/` serves the examples only: events with a queue cannot be called without it.
_OPEN_GRADIO = ("queue/join", "queue/data", "run/", "cancel", "reset", "heartbeat/")


class _OnlyThePage:
    """ASGI middleware that passes the page's own requests and answers 404 to all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        inside = path.removeprefix("/gradio_api/")
        if (
            scope["type"] == "lifespan"
            or path in _OPEN
            or path.startswith(_OPEN_BELOW)
            or (inside != path and inside.startswith(_OPEN_GRADIO))
        ):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            error = ApiError(404, "there is nothing here: the page is at /", code="not_found")
            await error_response(error)(scope, receive, send)


def create_ui_app(studio: Studio, settings: UiSettings) -> FastAPI:
    """Return the app with the page; the caller closes the studio. `state.end` closes open connections."""
    app = FastAPI(title="LLMDiff", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    app.state.end = add_page(app, studio, settings)
    # The last middleware added is the outermost.
    app.add_middleware(_OnlyThePage)
    if settings.password is not None:
        app.add_middleware(PasswordForm, password=settings.password, open_paths=("/health",))
    app.add_middleware(
        RequestGuard,
        max_body_bytes=_MAX_BODY_BYTES,
        body_timeout_s=_BODY_TIMEOUT_S,
        headers={"Content-Security-Policy": _POLICY},
    )
    return app


def serve_ui(settings: UiSettings, *, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serve the page until a signal ends it. `on_start` is called with its address.

    Raises:
        ConfigError: the address cannot be listened on.
        LLMDiffError: a model is missing, damaged or does not fit.
    """
    listener = listen(host, port)
    studio = Studio()
    try:
        # Load the models before serving, so that errors show at the command line.
        studio.load(settings.first_models)
        app = create_ui_app(studio, settings)
        address, bound_port = listener.getsockname()[:2]
        if settings.password is None and address not in ("127.0.0.1", "::1"):
            log("no password is set: anyone who can reach this address can draw", level=30)
        on_start(f"http://{f'[{address}]' if ':' in address else address}:{bound_port}")

        def close() -> None:
            studio.stop()
            app.state.end()

        run_server(app, listener, grace_s=_GRACE_S, on_closing=close)
    except KeyboardInterrupt:
        pass  # while the models load
    finally:
        studio.close()
        listener.close()
