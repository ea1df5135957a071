"""From a checked request to the pieces of its texts, step by step."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from quill.engines.request import Token
from quill.generation.logprobs import prompt_tokens
from quill.server.completions.fields import Plan
from quill.server.completions.text import Opening, Piece, RowText, join
from quill.server.metrics import Metrics
from quill.server.served_models import ServedModel
from quill.server.writer import Generation

FinishReason = Literal["stop", "length"]


class RowPiece(NamedTuple):
    """What a step adds to the text of a row; the last one has a reason."""

    row: int
    piece: Piece
    reason: FinishReason | None


@dataclass(frozen=True)
class Started:
    """The texts of a request, which are being generated: close `generation` in any case."""

    plan: Plan
    generation: Generation
    openings: Sequence[Opening]
    """one for each prompt"""
    rows: Sequence[RowText]
    on_first_token: Callable[[float], object]
    """called with the seconds since the start when the first token is there"""
    started_at: float

    def opening(self, row: int) -> Opening:
        """Return what the text of a row begins with."""
        return self.openings[row // self.plan.best_of]


async def start(model: ServedModel, plan: Plan, metrics: Metrics) -> Started:
    """Begin to generate the texts of a plan; BusyError if too many texts wait."""
    started_at = time.perf_counter()
    generation = model.writer.start(plan.requests)
    try:
        openings = await openings_of(model, plan)
        rows = [RowText(openings[row // plan.best_of], plan.stops) for row in range(len(plan.requests))]
        metrics.count_prompt(model.id, sum(map(len, plan.prompts)))
        return Started(plan, generation, openings, rows, partial(metrics.observe_first_token, model.id), started_at)
    except BaseException:
        generation.close()
        raise


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


async def steps_of(started: Started, ping_seconds: float | None = None) -> AsyncGenerator[list[RowPiece]]:
    """Yield what each step adds to each row; a row that has generated a stop string is ended.

    An empty list is yielded when nothing has happened for `ping_seconds`.
    """
    generation, is_first = started.generation, True
    async with aclosing(generation.steps(ping_seconds)) as steps:
        async for events in steps:
            if events and is_first:
                started.on_first_token(time.perf_counter() - started.started_at)
                is_first = False
            added: dict[int, RowPiece] = {}
            for row, event in events:
                text = started.rows[row]
                if text.stopped:  # a token of the same step, after the stop string
                    continue
                piece = text.feed(event.token) if event.token is not None else Piece()
                if text.stopped:
                    generation.end(row)
                elif event.finish_reason is not None:
                    piece = join([piece, text.flush()])
                reason = "stop" if text.stopped else "length" if event.finish_reason else None
                before = added[row].piece if row in added else Piece()
                added[row] = RowPiece(row, join([before, piece]), reason)
            yield list(added.values())
