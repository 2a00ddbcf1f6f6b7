"""Runs an app with uvicorn on one address: signals end it gently, errors before it listens are ours."""

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


class GentleServer(uvicorn.Server):
    """A server that says so at once when it is told to end, and then finishes what runs."""

    def __init__(
        self, config: uvicorn.Config, on_closing: Callable[[], None], on_giving_up: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_closing, self._on_giving_up = on_closing, on_giving_up
        self._gave_up = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at a first signal; a second SIGINT gives up what runs, a third asks nobody."""
        if self.should_exit and sig == signal.SIGINT and not self._gave_up:
            # Not uvicorn's own way, which answers whoever waits with 500.
            self._gave_up = True
            self._on_giving_up()
            return
        self._on_closing()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """
    if not host:  # the system would take it for every address of this machine
        raise ConfigError(
            "host is empty, expected an address: 127.0.0.1, or 0.0.0.0 for every one of this machine"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (
        OSError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:  # TypeError: a name that no address can have
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"host, port: {host}:{port} cannot be listened on ({reason}): choose another"
        ) from error
    return listener


def say_listening(listener: socket.socket, what: str) -> None:
    """Write to the log, and for whoever sits at a terminal, where the server listens."""
    address, port = listener.getsockname()[:2]
    log("listening", host=address, port=port)
    if sys.stdout.isatty():
        # Every address is also this machine's own.
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
    """Serve until a signal ends it. `on_server` gets the server before it starts.

    The first signal calls `on_closing` and what runs is finished; a second Ctrl-C calls `on_giving_up`.

    Units: `grace_s` in seconds: requests that run get as long to finish.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        http=BoundedConnection,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s) + 5,
    )
    server = GentleServer(config, on_closing, on_giving_up)
    on_server(server)
    server.run(sockets=[listener])


def serve_images(models: Models, settings: ServeSettings, *, host: str, port: int) -> None:
    """Serve the image API until a signal ends it.

    Raises:
        ConfigError: the address cannot be listened on.
        LLMDiffError: a model is missing, damaged or does not fit.
    """
    from llmdiff.serving.api import create_app
    from llmdiff.serving.painter import PipelinePainter

    listener = listen(host, port)
    log_as_json()
    servers: list[GentleServer] = []

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    app = create_app(lambda: PipelinePainter.load(models), settings, on_failure=stop)
    service = app.state.service

    def close() -> None:
        service.batcher.closing = True

    address = listener.getsockname()[0]
    if settings.token is None and address not in ("127.0.0.1", "::1"):
        log("no token is set: whoever reaches this address can draw", level=30, host=address)
    say_listening(listener, "docs at")
    # After its end uvicorn passes the signal on; by then there is nothing left to interrupt.
    with suppress(KeyboardInterrupt):
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
