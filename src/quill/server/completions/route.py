"""POST /v1/completions: check the request, generate its texts, and answer with all of them or with a stream."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from quill.server.body import read_json
from quill.server.completions.answer import Answer
from quill.server.completions.fields import CompletionFields, plan_of
from quill.server.completions.generate import FinishReason, Started, start, steps_of
from quill.server.completions.stream import EventStream
from quill.server.completions.text import join
from quill.server.connection.disconnect import unless_disconnected
from quill.server.errors import json_response
from quill.server.metrics import Metrics
from quill.server.models import find_model
from quill.server.settings import Limits

MOST_NAMED = 20  # ignored fields in the header


async def complete(request: Request) -> Response:
    """Answer POST /v1/completions."""
    limits: Limits = request.app.state.settings.limits
    fields, ignored = await read_json(request, CompletionFields, limits)
    model = await find_model(request, fields.model)
    plan = plan_of(fields, model.checkpoint.tokenizer, model.checkpoint.config, limits)
    answer = Answer(model, plan)
    headers = {"x-quill-ignored": ", ".join(map(_quoted, ignored[:MOST_NAMED]))} if ignored else {}
    if not fields.stream:
        content = await unless_disconnected(request.receive, whole_answer(answer, request.app.state.metrics))
        return json_response(content, headers=headers)
    started = await unless_disconnected(request.receive, start(model, plan, request.app.state.metrics))
    options = fields.stream_options
    return EventStream(answer, started, bool(options and options.include_usage), headers)


def _quoted(name: str) -> str:
    return quote(name[:64], safe="")


async def whole_answer(answer: Answer, metrics: Metrics) -> dict[str, Any]:
    """Return the JSON object with all texts."""
    started = await start(answer.model, answer.plan, metrics)
    with started.generation:
        rows = range(len(started.rows))
        pieces = [[started.opening(row).piece] for row in rows]
        reasons: list[FinishReason | None] = [None for _ in rows]
        async with aclosing(steps_of(started)) as steps:
            async for step in steps:
                for row, piece, reason in step:
                    pieces[row].append(piece)
                    reasons[row] = reason
    choices = [answer.choice(i, join(pieces[row]), reasons[row]) for i, row in enumerate(chosen_rows(started))]
    return answer.envelope(choices) | {"usage": answer.usage(started.rows)}


def chosen_rows(started: Started) -> list[int]:
    """Return the rows that are returned: of each prompt the `n` with the highest mean log-probability, best first."""
    plan, rows = started.plan, started.rows
    if plan.best_of == plan.n:
        return list(range(len(rows)))
    prompts = (range(first, first + plan.best_of) for first in range(0, len(rows), plan.best_of))
    return [row for prompt in prompts for row in sorted(prompt, key=lambda row: -rows[row].mean_logprob)[: plan.n]]
