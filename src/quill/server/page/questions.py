"""The routes of the page: a question as JSON, its answer as JSON or bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quill.lab.finding import dump, plain
from quill.server.body import read_json
from quill.server.models import find_model

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories, Laboratory
    from quill.server.served_models import ServedModel


class Question(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What every question names: a served model, by default the newest."""

    model: str | None = None


Q = TypeVar("Q", bound=Question)
Compute = Callable[["Laboratory", "ServedModel", Q], Any]
"""Computes the answer in the thread of the model's laboratory: bytes, or what `plain` can turn into JSON."""


def ask(laboratories: Laboratories, path: str, kind: type[Q], compute: Compute[Q]) -> Route:
    """Return the route of a question about a model, sent as the JSON body of a POST."""

    async def endpoint(request: Request) -> Response:
        question = await read_question(request, kind)
        model = await find_model(request, question.model)
        laboratory = laboratories.of(model)
        return answer(await laboratory.answer(compute, laboratory, model, question))

    return Route(path, endpoint, methods=["POST"])


async def read_question(request: Request, kind: type[Q]) -> Q:
    """Return the question in the body of a request; ApiError for anything else than JSON of its fields."""
    question, _ = await read_json(request, kind, request.app.state.settings.limits)
    return question


def answer(content: Any) -> Response:
    """Return an answer as JSON; a number that is not finite is null. Bytes are sent as they are."""
    if isinstance(content, bytes):
        return Response(content, media_type="application/octet-stream")
    return Response(dump(plain(content)), media_type="application/json")
