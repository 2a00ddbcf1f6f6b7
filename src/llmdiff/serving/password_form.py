"""Password protection of a page: a login form and a session cookie."""

import asyncio
import hmac
import secrets
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llmdiff.serving.templates import render

LOGIN_PATH = "/login"
_COOKIE = "llmdiff_session"
_WRONG_S = 0.5
_MAX_GUESSES = 16


class _Guesses:
    """The pending login attempts of one address."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class PasswordForm:
    """ASGI middleware that shows a login form until the password has been entered.

    Wrong passwords from one address are answered one at a time and slowly, against brute force; other addresses are
    not affected.
    """

    def __init__(self, app: ASGIApp, *, password: str, open_paths: tuple[str, ...] = ()) -> None:
        self._app = app
        self._password = password.encode()
        self._open_paths = open_paths
        # One session token for all users, who have the same rights. A new one for every start.
        self._session = secrets.token_urlsafe(32)
        self._guessing: dict[str, _Guesses] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if scope["path"] == LOGIN_PATH:
            response = await self._login(request)
        elif scope["path"] in self._open_paths or self._knows(request):
            await self._app(scope, receive, send)
            return
        else:
            response = _form(401, "")
        await response(scope, receive, send)

    def _knows(self, request: Request) -> bool:
        given = request.cookies.get(_COOKIE, "")
        return hmac.compare_digest(given.encode(), self._session.encode())

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return _form(200, "")
        address = request.client.host if request.client else ""
        guesses = self._guessing.setdefault(address, _Guesses())
        if guesses.waiting >= _MAX_GUESSES:
            return _form(429, "Too many attempts at once: wait a little.")
        guesses.waiting += 1
        try:
            return await self._judged(request, guesses)
        finally:
            guesses.waiting -= 1
            if not guesses.waiting:
                self._guessing.pop(address, None)

    async def _judged(self, request: Request, guesses: "_Guesses") -> Response:
        given = parse_qs((await request.body()).decode("utf-8", "replace")).get("password", [""])[0]
        async with guesses.lock:
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._password):
                await asyncio.sleep(_WRONG_S)
                return _form(401, "That is not the password.")
        response = RedirectResponse(".", status_code=303)
        response.set_cookie(
            _COOKIE, self._session, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return response


def _form(status: int, message: str) -> Response:
    return HTMLResponse(
        render("login.html", message=message),
        status_code=status,
        headers={
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'",
        },
    )
