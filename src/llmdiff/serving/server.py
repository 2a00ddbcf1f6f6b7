"""Run an app with uvicorn on one address, with graceful shutdown."""

import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from llmdiff.drawing.models import Models
from llmdiff.errors import ConfigError
from llmdiff.serving.connections import BoundedConnection
from llmdiff.serving.logs import log, log_as_json
from llmdiff.serving.settings import ServeSettings

_KEEP_ALIVE_S = 30
_BACKLOG = 2048  # of uvicorn


class GentleServer(uvicorn.Server):
    """A server with graceful shutdown: it stops accepting requests at once, then finishes running ones."""

    def __init__(
        self, config: uvicorn.Config, on_closing: Callable[[], None], on_giving_up: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_closing, self._on_giving_up = on_closing, on_giving_up
        self._gave_up = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down gracefully at a first signal; a second SIGINT cancels running requests, a third exits at once."""
        if self.should_exit and sig == signal.SIGINT and not self._gave_up:
            # Not uvicorn's handling, which answers waiting clients with 500.
            self._gave_up = True
            self._on_giving_up()
            return
        self._on_closing()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; port 0 chooses a free one.

    Raises:
        ConfigError: the address is in use, or does not belong to this machine.
    """
    if not host:  # the system would bind every address of this machine
        raise ConfigError(
            "host is empty, expected an address: 127.0.0.1, or 0.0.0.0 for every one of this machine"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError, TypeError, ValueError) as error:  # TypeError: an invalid name
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"host, port: {host}:{port} cannot be listened on ({reason}): choose another"
        ) from error
    return listener


def say_listening(listener: socket.socket, what: str) -> None:
    """Accept connections from now on, and write the server's address to the log, and to a terminal."""
    # Clients may connect at this line, before uvicorn accepts; unless the socket listens, they are refused.
    listener.listen(_BACKLOG)
    address, port = listener.getsockname()[:2]
    log("listening", host=address, port=port)
    if sys.stdout.isatty():
        # 0.0.0.0 includes the loopback address.
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        print(f"{what} http://{f'[{name}]' if ':' in name else name}:{port}/ (Ctrl-C ends)", flush=True)


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    grace_s: float,
    on_closing: Callable[[], None] = lambda: None,
    on_giving_up: Callable[[], None] = lambda: None,
    on_server: Callable[[GentleServer], None] = lambda server: None,
) -> None:
    """Serve until a signal ends it. `on_server` is called with the server before it starts.

    The first signal calls `on_closing` and finishes running requests; a second Ctrl-C calls `on_giving_up`.

    Units: `grace_s` in seconds, the time for running requests to finish.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        http=BoundedConnection,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s) + 5,
    )
    server = GentleServer(config, on_closing, on_giving_up)
    on_server(server)
    # After shutdown uvicorn re-raises the signal; there is nothing left to interrupt.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def serve_images(models: Models, settings: ServeSettings, *, host: str, port: int) -> None:
    """Serve the image API until a signal ends it.

    Raises:
        ConfigError: the address cannot be listened on.
        LLMDiffError: a model is missing, damaged or does not fit.
    """
    from llmdiff.serving.api import create_app
    from llmdiff.serving.pipeline_drawer import PipelineDrawer

    listener = listen(host, port)
    log_as_json()
    servers: list[GentleServer] = []

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    app = create_app(lambda: PipelineDrawer.load(models), settings, on_failure=stop)
    service = app.state.service

    def close() -> None:
        service.batcher.closing = True

    address = listener.getsockname()[0]
    if settings.token is None and address not in ("127.0.0.1", "::1"):
        log("no token is set: anyone who can reach this address can draw", level=30, host=address)
    say_listening(listener, "docs at")
    run_server(
        app,
        listener,
        grace_s=settings.timeout_s,
        on_closing=close,
        on_giving_up=service.batcher.abandon_all,
        on_server=servers.append,
    )
    if service.failure is not None:
        raise service.failure
