"""GET /openapi.json: the routes of the API with the fields of their requests and answers.

Requests are described by the types that check them. The types of answers are only here; tests check answers with them.
"""

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
    "431": "the headers are too large",
    "429": "too many texts wait; Retry-After says when to try again",
    "500": "an error inside the server",
    "503": "the server is starting, stopping or full",
}


class Logprobs(msgspec.Struct):
    """Log-probabilities of the tokens of a text; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(msgspec.Struct):
    """One text of an answer."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    """Number of tokens that were read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(msgspec.Struct):
    """The answer to POST /v1/completions; with stream=true each event is one, with a piece of each text."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class Tokens(msgspec.Struct):
    """The answer to POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Text(msgspec.Struct):
    """The answer to POST /detokenize."""

    prompt: str
    content: str


class Model(msgspec.Struct):
    """A model; the fields from `step` on are known once it is in memory."""

    id: str
    object: str
    created: int
    owned_by: str
    training: bool
    step: int | msgspec.UnsetType | None = msgspec.UNSET
    val_loss: float | msgspec.UnsetType | None = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    vocab_size: int | msgspec.UnsetType = msgspec.UNSET
    weights_sha256: str | msgspec.UnsetType = msgspec.UNSET


class Models(msgspec.Struct):
    """The answer to GET /v1/models."""

    object: str
    data: list[Model]


class TokenizerInfo(msgspec.Struct):
    """The answer to GET /tokenizer_info."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    eos_token: str
    bos_token: str
    pad_token: str
    chat_template: str | None


class Health(msgspec.Struct):
    """The answer to GET /health."""

    status: str
    detail: str | msgspec.UnsetType = msgspec.UNSET


POSTS: dict[str, tuple[str, type[msgspec.Struct], type[msgspec.Struct]]] = {
    "/v1/completions": ("Complete texts", CompletionFields, Completion),
    "/tokenize": ("The tokens of a text", TokenizeFields, Tokens),
    "/detokenize": ("The text of tokens", DetokenizeFields, Text),
}
GETS: dict[str, tuple[str, type[msgspec.Struct] | None]] = {
    "/v1/models": ("All models, the default first", Models),
    "/v1/models/{model_id}": ("One model", Model),
    "/tokenizer_info": ("What the tokenizer of a model is", TokenizerInfo),
    "/health": ("Whether the newest model is in memory", Health),
    "/metrics": ("Numbers for Prometheus, as text", None),
}


async def openapi(request: Request) -> Response:
    """Answer GET /openapi.json."""
    return json_response(document())


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI description of the server."""
    asked = [kind for _, kind, _ in POSTS.values()]
    answered = [kind for _, _, kind in POSTS.values()] + [kind for _, kind in GETS.values() if kind]
    schemas, components = msgspec.json.schema_components(
        [*asked, *answered], ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip([*asked, *answered], schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"get": _operation(text, by_kind[kind] if kind else None)} for path, (text, kind) in GETS.items()
    }
    paths["/health"]["get"]["responses"]["503"] = _response("the model is loaded, or cannot be", by_kind[Health])
    name = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model_id}"]["get"]["parameters"] = [name]
    query = {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}}
    paths["/tokenizer_info"]["get"]["parameters"] = [query]
    for path, (text, kind, answer) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": by_kind[kind]}}}
        paths[path] = {"post": _operation(text, by_kind[answer]) | {"requestBody": body}}
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    paths["/v1/completions"]["post"]["responses"]["200"]["content"] |= stream
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


def _operation(text: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    """Return a route without its parameters; an answer without a schema is text."""
    done = {"description": "done", "content": {"text/plain": {"schema": {"type": "string"}}}}
    error = {"$ref": "#/components/schemas/Error"}
    errors = {status: _response(each, error) for status, each in ERRORS.items()}
    return {"summary": text, "responses": {"200": _response("done", answer) if answer else done, **errors}}


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
