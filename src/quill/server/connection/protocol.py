"""HTTP on one connection, with a deadline for receiving a request, which uvicorn lacks.

A client that sends a byte now and then would keep its connection, and what is held for it, for ever. Here the time from
the first byte of a request to its last is limited. Between two requests uvicorn's own timeout applies.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from quill.server.errors import ApiError, headers_too_large
from quill.server.settings import Limits

PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for each request, a limit of connections, and errors as JSON."""

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            message = f"there are more than {self.limits.connections:,} open connections"
            self._refuse(ApiError(503, message, code="too_many_connections", headers={"Retry-After": "1"}))
            return
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        self._start_timer()
        super().data_received(data)
        self._stop_timer_unless_receiving()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP, or whose headers are too long. uvicorn calls it from an except block."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._refuse(headers_too_large(self.limits))
        else:
            self._refuse(ApiError(400, "the request is not valid HTTP"))

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.receive_seconds, self._on_deadline)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_timer_unless_receiving(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_timer()

    def _on_deadline(self) -> None:
        self._timer = None
        message = f"the request was not received within {self.limits.receive_seconds:g} seconds"
        self._refuse(ApiError(408, message, code="too_slow"))

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        has_begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not has_begun:
            self.transport.write(raw_response(error))
        self.transport.close()
        # A client that does not read would keep a closing connection open.
        self.loop.call_later(1.0, self.transport.abort)


def raw_response(error: ApiError) -> bytes:
    """Return an error as the bytes of an HTTP response that ends the connection."""
    body = msgspec.json.encode(error.body())
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        **error.response_headers(),
    }
    lines = [f"{name}: {value}" for name, value in headers.items()]
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"
    return "\r\n".join([status, *lines, "", ""]).encode() + body


def protocol_with(limits: Limits) -> type[DeadlineProtocol]:
    """Return the protocol with these limits; uvicorn makes its instances itself."""
    return type("DeadlineProtocol", (DeadlineProtocol,), {"limits": limits})
