"""Errors as the API reports them: a status and a JSON object in the shape that OpenAI's clients read."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quill.engines.request import BusyError
from quill.errors import ConfigError, QuillError, TokenizerError
from quill.server.settings import Limits


class ApiError(Exception):
    """An error with its HTTP status. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON object that describes the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the HTTP response; a client that would try again in vain is told not to do that."""
        return json_response(self.body(), self.status, self.response_headers())

    def response_headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        headers = dict(self.headers)
        if self.status == 429:
            headers.setdefault("Retry-After", "1")
        if self.status not in (408, 429, 503):
            headers["x-should-retry"] = "false"
        return headers


class DisconnectedError(Exception):
    """The client has closed the connection before the end of its answer."""


class ServerStoppingError(Exception):
    """The server is stopping, so an open request ends early."""


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with this content as JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def headers_too_large(limits: Limits) -> ApiError:
    """Return the error for a request whose first line and headers are too long."""
    return ApiError(431, f"the request's headers are larger than {limits.header:,} bytes", code="headers_too_large")


def api_error(error: Exception) -> ApiError:
    """Return an exception as the error that the client gets. A bug is a 500 that says nothing about the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, ServerStoppingError):
        return ApiError(503, "the server is stopping", code="stopping")
    if isinstance(error, ConfigError | TokenizerError):
        return ApiError(400, str(error), param=_field_named(str(error)))
    if isinstance(error, QuillError):
        return ApiError(500, str(error))
    return ApiError(500, "an error inside the server; its log has the traceback")


def report_bug(error: Exception) -> None:
    """Print the traceback of a bug to standard error; any other error is the client's to read."""
    if not isinstance(error, ApiError | ServerStoppingError | QuillError):
        traceback.print_exception(error, file=sys.stderr)


def _field_named(message: str) -> str | None:
    """Return the field at the start of a message such as "top_p=2 cannot be used"."""
    name, equals, _ = message.partition("=")
    return name if equals and name.isidentifier() else None


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer a request for which there is no route."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=error.headers).response()


class Errors:
    """ASGI middleware that answers a request that ended in an exception; the traceback of a bug is printed.

    `on_answer(path, status)` is called with the path of the route for every answer.
    """

    def __init__(self, app: ASGIApp, on_answer: Callable[[str, int], object]) -> None:
        self.app, self.on_answer = app, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_and_count(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                self.on_answer(getattr(scope.get("route"), "path", "") or "other", message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_count)
        except DisconnectedError:
            return
        except Exception as error:
            report_bug(error)
            if has_started:
                raise
            await api_error(error).response()(scope, receive, send_and_count)
