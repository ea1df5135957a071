"""What else could have come at one position of a text: the probability of each token, before and after the rules.

POST /api/alternatives has the fields of a completion that decide a token, and the tokens `generated` before it. The
logits are those of the engine that generates, so that they are the ones that the text was drawn from. A text longer
than the context is the exception: its last `max_model_len` tokens are read, which the answer reports as `cropped`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quill.engines import request as engine
from quill.generation.alternatives import Alternatives, alternatives
from quill.server.body import read_json
from quill.server.completions.fields import CompletionFields, biases_of, prompts_of, sampling_of
from quill.server.completions.text import name_of
from quill.server.errors import ApiError, json_response
from quill.server.models import find_model
from quill.server.served_models import ServedModels
from quill.server.settings import Limits
from quill.tokenizers.base import Tokenizer


class Question(CompletionFields, kw_only=True):
    """The body of POST /api/alternatives."""

    generated: Annotated[list[int], Meta(description="the tokens that were generated after the prompt")] = field(
        default_factory=list
    )


def routes(served: ServedModels) -> list[Route]:
    """Return the routes of this module."""
    return [Route("/alternatives", answer, methods=["POST"])]


async def answer(request: Request) -> Response:
    """Answer POST /api/alternatives: all tokens of the vocabulary, the likeliest first."""
    limits: Limits = request.app.state.settings.limits
    question, _ = await read_json(request, Question, limits)
    model = await find_model(request, question.model)
    tokenizer, config = model.checkpoint.tokenizer, model.checkpoint.config
    prompts = prompts_of(question.prompt, tokenizer, limits)
    if len(prompts) > 1:
        raise ApiError(400, f"{len(prompts):,} prompts: give one", param="prompt")
    generated = prompts_of(list(question.generated), tokenizer, limits)[0] if question.generated else []
    biases = biases_of(question.logit_bias, config.vocab_size)
    asked = engine.Request(tuple(prompts[0]), 1, sampling_of(question), logit_bias=biases)
    tokens = [*asked.prompt, *generated]
    read = tokens[-config.block_size :]
    logits_V = await model.writer.call(lambda batch: batch.logits(read)[-1])
    found = await asyncio.to_thread(alternatives, logits_V, asked, generated)
    body = {"read": len(read), "cropped": len(read) < len(tokens), "alternatives": described(found, tokenizer)}
    return json_response(body)


def described(found: Alternatives, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return each token with its id, text and both probabilities, the likeliest of the model first."""
    order = np.argsort(-found.before_V, kind="stable").tolist()
    before, after = found.before_V.tolist(), found.after_V.tolist()
    return [{"id": i, "text": name_of(tokenizer, i), "before": before[i], "after": after[i]} for i in order]
