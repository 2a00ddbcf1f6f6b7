"""Middleware for every request: API key, origin, body size, request id, and a line in the log."""

import asyncio
import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmdiff.serving.errors import ApiError, error_response, internal_error
from llmdiff.serving.logs import log
from llmdiff.serving.metrics import Metrics

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


def log_fields(scope: Any) -> dict[str, Any]:
    """Return the fields of the request's line in the log, to which handlers may add."""
    fields: dict[str, Any] = scope.setdefault("llmdiff.log", {})
    return fields


def own_hosts(public_url: str | None) -> tuple[str, ...]:
    """Return the host names of a server on this machine that clients reach at `public_url`, if given."""
    public = urlsplit(public_url or "").hostname
    return (socket.gethostname().lower(), *([public] if public else []))


class RequestGuard:
    """ASGI middleware that rejects invalid requests with an `ErrorReply` and handles exceptions of the app.

    Without a token, requests from pages of other sites are rejected, and with `hosts` also requests to any other host
    name, except IP addresses and names without a dot (DNS rebinding). `headers` are defaults for every response.
    `larger_bodies`: body limits of single paths.

    Fields:
        max_held_bytes: the largest total size of all request bodies in memory.

    Units: `body_timeout_s` in seconds, for the whole body.
    """

    max_held_bytes = 256 * 2**20

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        larger_bodies: Mapping[str, int] | None = None,
        hosts: Collection[str] | None = None,
        token: str | None = None,
        open_paths: Collection[str] = (),
        metrics: Metrics | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._held_bytes = 0
        self._larger_bodies = dict(larger_bodies or {})
        self._body_timeout_s = body_timeout_s
        self._token = None if token is None else token.encode()
        self._open_paths = open_paths
        self._hosts = hosts
        self._metrics = metrics
        more = {name.lower().encode(): value.encode() for name, value in (headers or {}).items()}
        self._headers = [*_HEADERS, *more.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        fields = log_fields(scope)
        began = time.monotonic()
        status = 0
        body = bytearray()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", []))
                names = {name.lower() for name, _ in given}
                extra = [header for header in self._headers if header[0] not in names]
                message = {**message, "headers": [*given, *extra, (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            self._check_token(scope)
            self._check_origin(scope)
            if await self._read(body, scope, receive):
                await self._app(scope, _replay(bytes(body), receive), answer)
        except ApiError as error:
            await error_response(error)(scope, receive, answer)
        except Exception as error:
            log("unexpected error", level=40, error=error, request_id=request_id)
            if not status:
                await error_response(internal_error(request_id))(scope, receive, answer)
        finally:
            self._held_bytes -= len(body)
            self._write_down(scope, request_id, status, time.monotonic() - began, fields)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in self._open_paths:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        # In constant time, against timing attacks.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_origin(self, scope: Scope) -> None:
        """Reject cross-site requests of browsers, unless the server has a key, which other sites do not know."""
        if self._token is not None:
            return
        sent = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host = sent.get(b"host", "")
        # DNS rebinding: a foreign name that resolves to this server, whose pages could read every response.
        if self._hosts is not None and not _is_ours(host, self._hosts):
            raise ApiError(
                421,
                f"this server is not called {host[:200]!r}: use its address, or serve with --public-url or a key",
                code="wrong_host",
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        # Browsers send Sec-Fetch-Site only to trustworthy servers; otherwise use Origin.
        site = sent.get(b"sec-fetch-site")
        origin = sent.get(b"origin")
        foreign = site != "same-origin" if site else origin is not None and origin.partition("://")[2] != host
        if foreign and site != "none":
            raise ApiError(
                403, "pages of other sites may not send requests to this server", code="cross_site"
            )

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> bool:
        """Read the request's body into `body`; return False if the client disconnected."""
        most = self._larger_bodies.get(scope["path"], self._max_body_bytes)
        too_large = ApiError(
            413,
            f"the body is too large, expected at most {most} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part = message.get("body", b"")
                    body += part
                    self._held_bytes += len(part)
                    if len(body) > most:
                        raise too_large
                    if self._held_bytes > self.max_held_bytes:
                        raise ApiError(
                            503,
                            "too many large requests at once: try again in a few seconds",
                            code="busy",
                            headers={"Retry-After": "5", "Connection": "close"},
                        )
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self._body_timeout_s:g} seconds",
                code="timeout",
                headers={"Connection": "close"},
            ) from None

    def _write_down(
        self, scope: Scope, request_id: str, status: int, elapsed_s: float, fields: dict[str, Any]
    ) -> None:
        # The route's template: the actual path may hold a secret, and its number of values is unbounded.
        route = getattr(scope.get("route"), "path", "other")
        if self._metrics is not None:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(elapsed_s)
        log(
            "request",
            request_id=request_id,
            method=scope["method"],
            route=route,
            status=status,
            seconds=round(elapsed_s, 3),
            **fields,
        )


def _is_ours(host: str, hosts: Collection[str]) -> bool:
    """Return whether a host name is an IP address, has no dot, or is in `hosts`, so that others cannot register it."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith((".localhost", ".local", ".internal")) or name in hosts
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
