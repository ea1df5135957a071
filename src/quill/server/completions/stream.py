"""An answer as server-sent events: each carries what one step has added to some texts.

Reference: the HTML standard, section 9.2 (Server-sent events).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quill.server.completions.answer import Answer
from quill.server.completions.generate import Started, steps_of
from quill.server.connection.disconnect import unless_disconnected
from quill.server.errors import api_error, report_bug

PING_SECONDS = 15.0  # proxies close a connection that is silent for longer
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"


class EventStream(Response):
    """The response to a request with stream=true. It ends its texts when it ends, and when its client goes away."""

    media_type = "text/event-stream"

    def __init__(
        self, answer: Answer, started: Started, include_usage: bool, headers: Mapping[str, str] | None = None
    ) -> None:
        self.answer, self.started, self.include_usage = answer, started, include_usage
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.started.generation:
            await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:  # the status is sent already, so the error is an event
            report_bug(error)
            body = _event(api_error(error).body())
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        openings = [
            self.answer.choice(row, self.started.opening(row).piece, None)
            for row in range(len(self.started.rows))
            if self.started.opening(row).piece.text
        ]
        if openings:
            yield self._chunk(openings)
        async with aclosing(steps_of(self.started, PING_SECONDS)) as steps:
            async for step in steps:
                choices = [
                    self.answer.choice(row, piece, reason) for row, piece, reason in step if piece.text or reason
                ]
                if choices:
                    yield self._chunk(choices)
                elif not step:
                    yield PING
        if self.include_usage:
            usage = self.answer.usage(self.started.rows)
            yield _event(self.answer.envelope([]) | {"usage": usage})
        yield DONE

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        envelope = self.answer.envelope(choices)
        return _event(envelope | {"usage": None} if self.include_usage else envelope)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
