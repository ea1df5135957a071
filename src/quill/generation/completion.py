"""Generated texts with their tokens, and their assembly from pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from quill.engines.request import Token

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True)
class Completion:
    """A complete generated text with its tokens."""

    text: str
    """the generated text without the stop string; with `echo`, the prompt before it"""
    tokens: tuple[Token, ...]
    """every generated token, including those of the stop string; with `echo`, those of the prompt before them"""
    finish_reason: FinishReason
    """whether it ended at max_new_tokens ("length") or at a stop string ("stop")"""

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens that have one, in nats; 0 if none has."""
        known = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(known) / max(1, len(known))


class Piece(NamedTuple):
    """A piece of the text of one row, as it is generated."""

    row: int
    text: str
    token: Token | None
    finish_reason: FinishReason | None


def collect(pieces: Iterable[Piece], num_rows: int) -> list[Completion]:
    """Return the completion of each row from its pieces."""
    texts: list[list[str]] = [[] for _ in range(num_rows)]
    tokens: list[list[Token]] = [[] for _ in range(num_rows)]
    reasons: list[FinishReason] = ["length"] * num_rows
    for piece in pieces:
        texts[piece.row].append(piece.text)
        if piece.token is not None:
            tokens[piece.row].append(piece.token)
        if piece.finish_reason is not None:
            reasons[piece.row] = piece.finish_reason
    parts = zip(texts, tokens, reasons, strict=True)
    return [Completion("".join(text), tuple(chosen), reason) for text, chosen, reason in parts]


def join(pieces: Iterable[tuple[int, str]], num_rows: int) -> list[str]:
    """Return the text of each row from its pieces, (row, text) each."""
    texts: list[list[str]] = [[] for _ in range(num_rows)]
    for row, text in pieces:
        texts[row].append(text)
    return ["".join(text) for text in texts]


def likeliest(completions: Sequence[Completion], count: int) -> list[Completion]:
    """Return the `count` completions with the highest mean log-probability, the highest first."""
    return sorted(completions, key=lambda completion: -completion.mean_logprob)[:count]
