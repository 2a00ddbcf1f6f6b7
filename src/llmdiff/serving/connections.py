"""HTTP connections with bounds: slow clients are cut off, and there are no more than a machine holds."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which by itself waits for ever for a request's headers and for a reply to be read.

    (A request's body has its time-out in `Guard`, a connection between two requests in uvicorn.)

    Units: seconds.
    """

    header_timeout_s = 20.0
    write_timeout_s = 60.0
    max_connections = 512

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        super().data_received(data)
        self._watch_headers()

    def pause_writing(self) -> None:
        """Wait until the client reads, but not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        _stop(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        _stop(self._header_timer)
        _stop(self._write_timer)
        super().connection_lost(exc)

    def _watch_headers(self) -> None:
        """The clock runs from the first byte of a request, and on a new connection from its start."""
        between = self.cycle is None or self.cycle.response_complete
        if not (between and self.conn.their_state is h11.IDLE):
            _stop(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
