"""The text of one row with its tokens: what may be sent after each token, and where each token is in the text.

A part of a character is held back until it is complete, and text that may be the beginning of a stop string until that
is decided. Tokens are sent with their text, so the tokens of a stop string are not sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from quill.engines.request import Token
from quill.generation.text_stream import TextStream, decode_prompt
from quill.tokenizers.base import Tokenizer

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
UNKNOWN = "\ufffd"


@dataclass
class Piece:
    """A piece of the text of a row, and the tokens that were sent with it."""

    text: str = ""
    tokens: list[tuple[Token, int]] = field(default_factory=list)
    """each token, and its place in the text as a number of characters"""


def join(pieces: Sequence[Piece]) -> Piece:
    """Return pieces of one text as one piece."""
    return Piece("".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens])


class Opening:
    """What all texts of one prompt begin with. With `echo` it is the prompt, with its tokens if `keeps_tokens`."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[Token], echo: bool, keeps_tokens: bool) -> None:
        self.tokenizer, self.keeps_tokens = tokenizer, keeps_tokens
        ids = [token.token_id for token in prompt]
        before, self.unfinished = decode_prompt(tokenizer, ids) if echo else (tokenizer.decode(ids), [])
        self.length = len(before)
        """characters before the generated text, without an unfinished one"""
        self.piece = Piece(before if echo else "")
        self.held: list[tuple[Token, int]] = []
        """the tokens of the unfinished character"""
        if echo and keeps_tokens:
            places = TokenPlaces(tokenizer, 0)
            for token in prompt:
                place = places.add(token.token_id)
                (self.piece.tokens if place < self.length else self.held).append((token, place))


class RowText:
    """The text of one row, token by token; `stopped` becomes True when a stop string was generated.

    `num_tokens` counts the generated tokens, and `sum_logprobs` adds up their log-probabilities.
    """

    def __init__(self, opening: Opening, stops: Sequence[str]) -> None:
        self._keeps_tokens = opening.keeps_tokens
        self._places = TokenPlaces(opening.tokenizer, opening.length)
        for token_id in opening.unfinished:
            self._places.add(token_id)
        self._stream = TextStream(opening.tokenizer, stops, opening.unfinished)
        self._held = deque(opening.held)
        self._sent = opening.length
        self.num_tokens, self.sum_logprobs = 0, 0.0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was generated."""
        return self._stream.stopped

    def feed(self, token: Token) -> Piece:
        """Add a generated token, and return what may be sent now."""
        self.num_tokens += 1
        self.sum_logprobs += token.logprob or 0
        if self._keeps_tokens:
            self._held.append((token, self._places.add(token.token_id)))
        return self._release(self._stream.feed(token.token_id))

    def flush(self) -> Piece:
        """End the text, and return what was held back."""
        return self._release(self._stream.flush())

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the generated tokens, in nats; 0 if they have none."""
        return self.sum_logprobs / max(1, self.num_tokens)

    def _release(self, text: str) -> Piece:
        self._sent += len(text)
        piece = Piece(text)
        while self._held and self._held[0][1] < self._sent:
            piece.tokens.append(self._held.popleft())
        return piece


class TokenPlaces:
    """Where each token is in the text: the number of characters before the one that it is, or is a part of."""

    def __init__(self, tokenizer: Tokenizer, start: int) -> None:
        self._tokenizer, self._decoder, self._end = tokenizer, tokenizer.stream_decoder(), start

    def add(self, token_id: int) -> int:
        """Return the place of the next token."""
        piece = self._decoder.feed(token_id)
        self._end += len(piece)
        own = decode_alone(self._tokenizer, token_id)
        if own is None:  # a part of a character: of the one that it completes, or else of the next one
            return self._end - (piece != "" and not begins_character(self._tokenizer, token_id))
        return self._end - len(own)


@lru_cache(maxsize=2**17)
def decode_alone(tokenizer: Tokenizer, token_id: int) -> str | None:
    """Return the text of a token; None if it is a part of a character."""
    text = tokenizer.decode([token_id])
    return None if UNKNOWN in text and tokenizer.kind == "byte" else text


@lru_cache(maxsize=2**17)
def begins_character(tokenizer: Tokenizer, token_id: int) -> bool:
    """Return whether a token is the beginning of a character of several tokens."""
    return tokenizer.stream_decoder().feed(token_id) == ""


def name_of(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as text; a part of a character as "bytes:" with its bytes."""
    text = decode_alone(tokenizer, token_id)
    return f"bytes:\\x{token_id:02x}" if text is None else text


def logprobs_json(tokenizer: Tokenizer, tokens: Sequence[tuple[Token, int]]) -> dict[str, Any]:
    """Return log-probabilities as the API has them: four lists of equal length.

    A token without a log-probability, such as the first of a prompt, has null. Any other has its likeliest rivals,
    and always itself.
    """
    top: list[dict[str, float] | None] = []
    for token, _ in tokens:
        if token.logprob is None:
            top.append(None)
            continue
        likeliest = {**dict(token.top_logprobs), token.token_id: token.logprob}
        top.append({name_of(tokenizer, token_id): _finite(value) for token_id, value in likeliest.items()})
    return {
        "tokens": [name_of(tokenizer, token.token_id) for token, _ in tokens],
        "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token, _ in tokens],
        "top_logprobs": top,
        "text_offset": [place for _, place in tokens],
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
