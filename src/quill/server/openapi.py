"""GET /openapi.json: the routes of the API and the fields of their requests, from the types that check them."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quill import __version__
from quill.server.completions.fields import CompletionFields
from quill.server.errors import json_response
from quill.server.tokens import DetokenizeFields, TokenizeFields

ERRORS = {
    "400": "a field that cannot be used; `param` names it",
    "401": "the key is missing or wrong",
    "403": "a foreign host or origin",
    "404": "no such model or route",
    "405": "another method",
    "408": "the request came too slowly",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "too many texts wait; Retry-After says when to try again",
    "500": "an error inside the server",
    "503": "the server is starting, stopping or full",
}
POSTS: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "/v1/completions": ("Complete texts", CompletionFields),
    "/tokenize": ("The tokens of a text", TokenizeFields),
    "/detokenize": ("The text of tokens", DetokenizeFields),
}
GETS = {
    "/v1/models": "All models, the default first",
    "/v1/models/{model_id}": "One model",
    "/tokenizer_info": "What the tokenizer of a model is",
    "/health": "Whether the newest model is in memory",
    "/metrics": "Numbers for Prometheus, as text",
}


async def openapi(request: Request) -> Response:
    """Answer GET /openapi.json."""
    return json_response(document())


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI description of the server."""
    structs = [struct for _, struct in POSTS.values()]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"get": _operation(text)} for path, text in GETS.items()}
    name = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model_id}"]["get"]["parameters"] = [name]
    query = {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}}
    paths["/tokenizer_info"]["get"]["parameters"] = [query]
    for (path, (text, _)), schema in zip(POSTS.items(), schemas, strict=True):
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": _operation(text) | {"requestBody": body}}
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quill", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(text: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": each, "content": content} for status, each in ERRORS.items()}
    return {"summary": text, "responses": {"200": {"description": "done"}, **errors}}
