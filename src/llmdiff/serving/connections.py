"""HTTP connections with limits on slow clients and on the number of connections."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """uvicorn's connection with timeouts for receiving a request's headers and for sending a response.

    (`RequestGuard` has the timeout of a request's body, uvicorn that of an idle connection.)

    Units: seconds.
    """

    header_timeout_s = 20.0
    write_timeout_s = 60.0
    max_connections = 512

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the connection and its header timeout."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Process data from the client."""
        super().data_received(data)
        self._watch_headers()

    def pause_writing(self) -> None:
        """Pause writing and start the timeout for the client to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume writing and cancel the timeout."""
        _stop(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the connection and cancel its timeouts."""
        _stop(self._header_timer)
        _stop(self._write_timer)
        super().connection_lost(exc)

    def _watch_headers(self) -> None:
        """Start the timeout at the first byte of a request, or at the start of a new connection."""
        between = self.cycle is None or self.cycle.response_complete
        if not (between and self.conn.their_state is h11.IDLE):
            _stop(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
