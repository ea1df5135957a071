"""Read the JSON body of a request, within the limits."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from quill.server.errors import ApiError
from quill.server.settings import Limits

T = TypeVar("T", bound=msgspec.Struct)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")
_PARAM = re.compile(r"`\$\.(\w+)")


async def read_json(request: Request, kind: type[T], limits: Limits) -> tuple[T, list[str]]:
    """Return the body of a request as a `msgspec.Struct`, and the names of its fields that the struct lacks.

    ApiError for a body that is too large, too deep, not JSON, or not such a struct.
    """
    body = await read_body(request, limits)
    check_depth(body, limits)
    try:
        names: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        return msgspec.json.decode(body, type=kind), [name for name in names if name not in known]
    except msgspec.ValidationError as error:
        param = _PARAM.search(str(error))
        raise ApiError(400, f"the body cannot be used: {error}", param=param and param[1]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request; ApiError 413 as soon as it is known to be larger than the limit."""
    error = ApiError(413, f"the body is larger than {limits.body:,} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body:
        raise error
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limits.body:
                raise error
    except ClientDisconnect:
        raise ApiError(400, "the client went away before the end of its request") from None
    return bytes(body)


def check_depth(body: bytes, limits: Limits) -> None:
    """Raise ApiError if arrays and objects are nested too deeply, before anything is parsed."""
    depth = 0
    for bracket in _NO_BRACKET.sub(b"", _STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > limits.depth:
            raise ApiError(400, f"the body nests more than {limits.depth} arrays and objects", code="too_deep")
