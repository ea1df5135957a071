"""The answer to a request for completions, as one JSON object or as the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quill import __version__
from quill.server.completions.fields import Plan
from quill.server.completions.generate import FinishReason
from quill.server.completions.text import Piece, RowText, logprobs_json
from quill.server.served_models import ServedModel


@dataclass
class Answer:
    """The envelope of one answer: what its JSON object, or each event of its stream, begins with."""

    model: ServedModel
    plan: Plan
    answer_id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the object with these choices."""
        return {
            "id": self.answer_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": fingerprint(self.model),
            "choices": choices,
        }

    def choice(self, index: int, piece: Piece, reason: FinishReason | None) -> dict[str, Any]:
        """Return the text of one row, or a piece of it, as an object of `choices`."""
        tokenizer = self.model.checkpoint.tokenizer
        logprobs = None if self.plan.logprobs is None else logprobs_json(tokenizer, piece.tokens)
        choice = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": reason}
        if self.plan.token_ids:
            choice["token_ids"] = [token.token_id for token, _ in piece.tokens]
        return choice

    def usage(self, rows: Sequence[RowText]) -> dict[str, int]:
        """Return the number of tokens that were read and generated."""
        read, generated = sum(map(len, self.plan.prompts)), sum(row.num_tokens for row in rows)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def fingerprint(model: ServedModel) -> str:
    """Return what decides the bytes of an answer besides its request: version, weights, engine, their format."""
    return f"quill-{__version__}-{model.hash[:16]}-{model.engine_name}"
