"""What is asked of an engine, and what it answers: plain data, for every engine and for the scheduler.

On the way text → tokens → model → training → generation → people this is the form that a wish takes once it is tokens.

Reference: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quill.engines.random_numbers import SEEDS
from quill.errors import QuillError
from quill.validation import check_fields, require


class BusyError(QuillError):
    """More requests are waiting than may wait."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; an impossible value is a ConfigError."""

    temperature: float = 1.0
    """0 takes the likeliest token; below 1 is bolder towards it, above 1 more even."""
    top_k: int | None = None
    """Keep only the k likeliest tokens (more than the vocabulary keeps all)."""
    top_p: float | None = None
    """Keep only the likeliest tokens that together hold this much probability."""
    min_p: float | None = None
    """Keep only tokens at least this fraction as likely as the likeliest one."""
    presence_penalty: float = 0.0
    """Subtracted from the score of every token that was written before; below 0 repetition is welcome."""
    frequency_penalty: float = 0.0
    """Subtracted for each time that the token was written before."""
    repetition_penalty: float = 1.0
    """Divides positive scores of tokens in the prompt or the text, and multiplies negative ones; 1 changes nothing."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "a number of at least 0 (0 takes the likeliest token)",
        )
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "a whole number of at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(self.min_p is None or 0 <= self.min_p < 1, "min_p", self.min_p, "at least 0 and below 1")
        for name in ("presence_penalty", "frequency_penalty"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        repetition = self.repetition_penalty
        require(0 < repetition < math.inf, "repetition_penalty", repetition, "a number above 0")


@dataclass(frozen=True)
class Request:
    """A text to be written. An impossible value is a ConfigError.

    Its tokens depend on nothing but this and the model: token t is chosen with number t of the random stream of
    (seed, row), whatever else is written at the same time.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    row: int = 0
    """which of several texts of one seed this is"""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """what is added to the scores of these tokens before all else"""
    logprobs: int | None = None
    """ask for the log-probability of each token, and of this many of the likeliest (None: not even of the token)"""

    def __post_init__(self) -> None:
        require(len(self.prompt) > 0, "prompt", [], "at least one token, there is nothing to continue otherwise")
        for name, value, least in (("max_new_tokens", self.max_new_tokens, 0), ("row", self.row, 0)):
            require(_is_whole(value) and value >= least, name, value, f"a whole number of at least {least}")
        require(
            _is_whole(self.seed) and 0 <= self.seed < SEEDS, "seed", self.seed, "a whole number from 0 to 2**64 - 1"
        )
        n = self.logprobs
        require(n is None or (_is_whole(n) and n >= 0), "logprobs", n, "None or a whole number of at least 0")


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    token_id: int
    logprob: float | None = None
    """log-probability (nats) by the model itself, before penalties, temperature and filters; None if not asked for"""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """the likeliest tokens and their log-probabilities, as many as were asked for"""


@dataclass(frozen=True)
class TokenEvent:
    """What happened to a request: a token was written, or it ended, or both."""

    request_id: int
    """the number that `Batch.add` gave it"""
    token: Token | None
    finish_reason: Literal["length", "cancelled"] | None = None
    """why it ended; None while it goes on"""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
