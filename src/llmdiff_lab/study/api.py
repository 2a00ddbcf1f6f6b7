"""The study's server: the page for raters and its API."""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse, JSONResponse, Response

from llmdiff.errors import ConfigError
from llmdiff.serving.errors import ApiError, error_response, install_error_handlers
from llmdiff.serving.logs import log_as_json
from llmdiff.serving.request_guard import RequestGuard, own_hosts
from llmdiff.serving.server import listen, run_server, say_listening
from llmdiff_lab.study.model import InvalidAnswerError, Progress, StudyFullError, UnknownRaterError
from llmdiff_lab.study.store import StudyStore
from llmdiff_lab.study.study import PICTURES_NAME, open_study

_MAX_BODY_BYTES = 16 * 1024
_BODY_TIMEOUT_S = 20.0
_GRACE_S = 10.0

Token = Annotated[str, InPath(max_length=64)]
Position = Annotated[int, InPath(ge=0, le=10**6)]


class Choices(BaseModel):
    """A rater's choice for every question."""

    model_config = ConfigDict(extra="forbid", strict=True)

    choices: Annotated[dict[str, Literal["left", "right", "tie"]], Field(max_length=20)]


def create_study_app(folder: str | Path, *, max_raters: int = 1000, public_url: str | None = None) -> FastAPI:
    """Return the app that shows a study's pairs to raters and stores their answers. Close its `state.store` after use.

    `public_url` is the address that raters use, if it is not this machine's own; other host names are rejected.

    Raises:
        ConfigError: the folder holds no study.
    """
    if max_raters < 1:
        raise ConfigError(f"max_raters is {max_raters}, expected at least 1")
    store = open_study(folder)
    app = FastAPI(
        title="LLMDiff study", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.store = store
    install_error_handlers(app)
    _install_study_errors(app)
    _install_page(app)
    _install_api(app, store, Path(folder) / PICTURES_NAME, max_raters)
    app.add_middleware(
        RequestGuard,
        max_body_bytes=_MAX_BODY_BYTES,
        body_timeout_s=_BODY_TIMEOUT_S,
        hosts=own_hosts(public_url),
    )
    return app


def serve_study(
    folder: str | Path, *, host: str, port: int, max_raters: int, public_url: str | None = None
) -> None:
    """Serve a study until a signal ends it.

    Raises:
        ConfigError: the folder holds no study, or the address cannot be listened on.
    """
    app = create_study_app(folder, max_raters=max_raters, public_url=public_url)
    try:
        listener = listen(host, port)
        log_as_json()
        say_listening(listener, "study at")
        run_server(app, listener, grace_s=_GRACE_S)
    finally:
        app.state.store.close()


def _install_page(app: FastAPI) -> None:
    text = (files("llmdiff_lab") / "study" / "study_page.html").read_text(encoding="utf-8")
    # The page is static: data reaches it as JSON only, and is set as text. So its script and style are allowed by
    # their hashes, and nothing else runs.
    script, style = (
        _hash(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)[0]) for tag in ("script", "style")
    )
    headers = {
        "Content-Security-Policy": f"default-src 'none'; script-src {script}; style-src {style}; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Robots-Tag": "noindex",
        "Cache-Control": "no-store",
    }

    @app.get("/")
    def first_page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @app.get("/r/{token}")
    def rater_page(token: Token) -> HTMLResponse:
        # The same page for every link; the page checks whether the rater exists.
        return HTMLResponse(text, headers=headers)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/favicon.ico")
    def icon() -> Response:
        # Browsers request one; answer without an error.
        return Response(status_code=204)


def _install_api(app: FastAPI, store: StudyStore, pictures: Path, max_raters: int) -> None:
    # Plain functions, not coroutines: each runs in a thread, so waiting for the disk does not block other requests.
    @app.get("/api/study")
    def study() -> dict[str, Any]:
        settings = store.settings
        questions = [{"id": name, "text": text} for name, text in settings.questions.items()]
        return {"title": settings.title, "questions": questions, "ties": settings.ties}

    @app.post("/api/raters", status_code=201)
    def new_rater() -> dict[str, str]:
        token = store.new_rater(max_raters=max_raters)
        return {"rater": token, "link": f"/r/{token}"}

    @app.get("/api/raters/{token}")
    def progress(token: Token) -> Progress:
        return store.progress(token)

    @app.get("/api/raters/{token}/pairs/{position}")
    def pair(token: Token, position: Position) -> dict[str, Any]:
        # Nothing in the reply depends on the system of a picture.
        shown = store.shown(token, position)
        left, right = (f"/pictures/{name}.png" for name in (shown.left_picture, shown.right_picture))
        return {
            "position": position,
            "prompt": shown.prompt,
            "left": left,
            "right": right,
            "choices": shown.choices,
        }

    @app.put("/api/raters/{token}/pairs/{position}")
    def answer(token: Token, position: Position, given: Choices) -> Progress:
        store.answer(token, position, given.choices, max_raters=max_raters)
        return store.progress(token)

    @app.get("/pictures/{name}.png")
    def picture(name: str) -> Response:
        # Look the name up before joining it to a path.
        if not store.has_picture(name):
            raise ApiError(404, "there is no such picture", code="not_found")
        # As bytes: a file response has the file's time in its headers, which raters must not see.
        return Response(
            (pictures / f"{name}.png").read_bytes(),
            media_type="image/png",
            headers={"Cache-Control": "private, max-age=86400, immutable"},
        )


def _install_study_errors(app: FastAPI) -> None:
    replies: dict[type[Exception], tuple[int, str]] = {
        UnknownRaterError: (404, "not_found"),
        StudyFullError: (403, "study_full"),
        InvalidAnswerError: (400, "invalid_value"),
    }

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status, code = replies[type(error)]
        param = "choices" if status == 400 else None
        return error_response(ApiError(status, str(error), code=code, param=param))

    for kind in replies:
        app.add_exception_handler(kind, refuse)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
