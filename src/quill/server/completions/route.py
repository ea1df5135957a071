"""POST /v1/completions: check the request, generate its texts, and answer with all of them or with a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from quill.engines.request import Token
from quill.generation.logprobs import prompt_tokens
from quill.server.body import read_json
from quill.server.completions.answer import Answer, FinishReason
from quill.server.completions.fields import CompletionFields, Plan, plan_of
from quill.server.completions.text import Opening, Piece, RowText, join
from quill.server.disconnect import unless_disconnected
from quill.server.errors import json_response
from quill.server.models import find_model
from quill.server.served_models import ServedModel
from quill.server.settings import Limits
from quill.server.writer import Generation

MOST_NAMED = 20  # ignored fields in the header


class RowPiece(NamedTuple):
    """What a step adds to the text of a row."""

    row: int
    piece: Piece
    reason: FinishReason | None


async def complete(request: Request) -> Response:
    """Answer POST /v1/completions."""
    limits: Limits = request.app.state.settings.limits
    fields, ignored = await read_json(request, CompletionFields, limits)
    model = await find_model(request, fields.model)
    plan = plan_of(fields, model.checkpoint.tokenizer, model.checkpoint.config, limits)
    answer = Answer(model, plan)
    headers = {"x-quill-ignored": ", ".join(map(_quoted, ignored[:MOST_NAMED]))} if ignored else {}
    content = await unless_disconnected(request.receive, whole_answer(answer))
    return json_response(content, headers=headers)


def _quoted(name: str) -> str:
    return quote(name[:64], safe="")


async def whole_answer(answer: Answer) -> dict[str, Any]:
    """Return the JSON object with all texts."""
    plan = answer.plan
    with answer.model.writer.start(plan.requests) as generation:
        openings = await openings_of(answer.model, plan)
        rows = [RowText(openings[row // plan.best_of], plan.stops) for row in range(len(plan.requests))]
        pieces = [[openings[row // plan.best_of].piece] for row in range(len(rows))]
        reasons: list[FinishReason | None] = [None] * len(rows)
        async for step in steps_of(generation, rows):
            for row, piece, reason in step:
                pieces[row].append(piece)
                reasons[row] = reason
    chosen = [row for first in range(0, len(rows), plan.best_of) for row in likeliest(rows, first, plan)]
    choices = [answer.choice(index, join(pieces[row]), reasons[row]) for index, row in enumerate(chosen)]
    return answer.envelope(choices) | {"usage": answer.usage(rows)}


async def openings_of(model: ServedModel, plan: Plan) -> list[Opening]:
    """Return what the texts of each prompt begin with; log-probabilities of prompts are computed if requested."""
    tokenizer, context = model.checkpoint.tokenizer, model.checkpoint.config.block_size
    keeps_tokens = plan.logprobs is not None or plan.token_ids
    openings = []
    for prompt in plan.prompts:
        if plan.echo and plan.logprobs is not None:
            tokens = await model.writer.call(
                lambda batch, prompt=prompt: prompt_tokens(prompt, context, plan.logprobs, batch.logits)
            )
        else:
            tokens = [Token(token_id) for token_id in prompt]
        openings.append(Opening(tokenizer, tokens, plan.echo, keeps_tokens))
    return openings


async def steps_of(generation: Generation, rows: Sequence[RowText]) -> AsyncIterator[list[RowPiece]]:
    """Yield what each step adds to each row; a row that has generated a stop string is ended."""
    async for events in generation.steps():
        added: dict[int, RowPiece] = {}
        for row, event in events:
            text = rows[row]
            if text.stopped:  # a token of the same step, after the stop string
                continue
            piece = text.feed(event.token) if event.token is not None else Piece()
            if text.stopped:
                generation.end(row)
            elif event.finish_reason is not None:
                piece = join([piece, text.flush()])
            reason: FinishReason | None = "stop" if text.stopped else "length" if event.finish_reason else None
            before = added[row].piece if row in added else Piece()
            added[row] = RowPiece(row, join([before, piece]), reason)
        yield list(added.values())


def likeliest(rows: Sequence[RowText], first: int, plan: Plan) -> list[int]:
    """Return the `n` rows with the highest mean log-probability among the `best_of` from `first`, the highest first."""
    several = range(first, first + plan.best_of)
    if plan.best_of == plan.n:
        return list(several)
    return sorted(several, key=lambda row: -rows[row].mean_logprob)[: plan.n]
