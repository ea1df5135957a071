"""Requests to an engine and the events that answer them: plain data for every engine and for the scheduler.

Values are checked here once, and limited to the range of float32 arithmetic (`for_engine`), so that all engines get the
same numbers.

Reference: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from quill.engines.random_numbers import SEEDS
from quill.errors import ConfigError, QuillError
from quill.validation import check_fields, plain_number, require, show

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)

# Limits of the numbers that engines compute with. Larger numbers choose the same tokens, but sums and products of
# several could overflow. A forbidden token stays forbidden after any penalty.
LIMIT, LARGEST_FACTOR, FORBIDDEN = 1e30, 1e7, -1e38


class BusyError(QuillError):
    """More requests are waiting than may wait."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; an impossible value is a ConfigError. NumPy numbers are accepted."""

    temperature: float = 1.0
    """divides the logits: 0 takes the likeliest token, 1 keeps the model's probabilities, above 1 evens them out"""
    top_k: int | None = None
    """keep only the k likeliest tokens (more than the vocabulary keeps all)"""
    top_p: float | None = None
    """keep only the likeliest tokens that together have this probability"""
    min_p: float | None = None
    """keep only tokens at least this fraction as likely as the likeliest one"""
    presence_penalty: float = 0.0
    """subtracted from the logit of every token that was generated before; below 0 it favours repetition"""
    frequency_penalty: float = 0.0
    """subtracted from the logit of a token for each time that it was generated before"""
    repetition_penalty: float = 1.0
    """divides positive logits of tokens in the prompt or the text, and multiplies negative ones; 1 changes nothing"""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, plain_number(getattr(self, each.name)))
        check_fields(self)
        temperature, repetition = self.temperature, self.repetition_penalty
        require(
            is_float32(temperature) and temperature >= 0,
            "temperature",
            temperature,
            "a number of at least 0 within float32 (0 takes the likeliest token)",
        )
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "a whole number of at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(self.min_p is None or 0 <= self.min_p < 1, "min_p", self.min_p, "at least 0 and below 1")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(is_float32(value), name, value, "a finite number within float32")
        in_range = is_float32(repetition) and repetition >= SMALLEST
        require(in_range, "repetition_penalty", repetition, "a number above 0 within float32")

    def for_engine(self) -> SamplingConfig:
        """Return these settings with numbers within the limits; they choose the same tokens."""
        limited = {
            "temperature": min(self.temperature, LIMIT),
            "top_p": None if self.top_p is None else max(self.top_p, SMALLEST),  # 0 would keep no token
            "presence_penalty": max(-LIMIT, min(self.presence_penalty, LIMIT)),
            "frequency_penalty": max(-LIMIT, min(self.frequency_penalty, LIMIT)),
            "repetition_penalty": max(1 / LARGEST_FACTOR, min(self.repetition_penalty, LARGEST_FACTOR)),
        }
        changed = {name: value for name, value in limited.items() if value != getattr(self, name)}
        return replace(self, **changed) if changed else self


@dataclass(frozen=True)
class Request:
    """A sequence to be generated. An impossible value is a ConfigError.

    Its tokens depend only on the request and the model: token t is chosen with number t of the random stream of
    (seed, row), whatever else is generated at the same time.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    row: int = 0
    """index among the sequences of one seed"""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """added to the logits of these tokens first; infinity allows no other token"""
    logprobs: int | None = None
    """return the log-probability of each token, and of this many of the likeliest tokens (None: neither)"""

    def __post_init__(self) -> None:
        require(len(self.prompt) > 0, "prompt", [], "at least one token, there is nothing to continue otherwise")
        for name, most in (("max_new_tokens", MOST_TOKENS), ("row", None)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=0, most=most))
        seed = plain_number(self.seed)
        require(is_whole(seed) and 0 <= seed < SEEDS, "seed", seed, "a whole number from 0 to 2**64 - 1")
        object.__setattr__(self, "seed", seed)
        n = plain_number(self.logprobs)
        require(n is None or (is_whole(n) and n >= 0), "logprobs", n, "None or a whole number of at least 0")
        object.__setattr__(self, "logprobs", n)
        object.__setattr__(self, "logit_bias", checked_biases(self.logit_bias))

    def for_engine(self, vocab_size: int) -> Request:
        """Return this request with numbers within the limits; it gives the same tokens.

        If a bias is infinite, all tokens without one are forbidden.
        """
        sampling, biases = self.sampling.for_engine(), self.logit_bias
        if forced := {token for token, bias in biases.items() if bias == math.inf}:
            biases = {token: FORBIDDEN for token in range(vocab_size) if token not in forced}
        elif any(abs(bias) > LIMIT for bias in biases.values()):
            biases = {token: max(-LIMIT, min(bias, LIMIT)) for token, bias in biases.items()}
        if sampling is self.sampling and biases is self.logit_bias:
            return self
        return replace(self, sampling=sampling, logit_bias=biases)


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    token_id: int
    logprob: float | None = None
    """log-probability (nats) of the model itself, before penalties, temperature and filters; None if not requested"""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """the likeliest tokens and their log-probabilities, as many as were requested"""


@dataclass(frozen=True)
class TokenEvent:
    """An event of a request: a token was generated, or the request ended, or both."""

    request_id: int
    """the id that `BatchGenerator.add` returned"""
    token: Token | None
    finish_reason: Literal["length", "cancelled"] | None = None
    """why it ended; None while it continues"""


def checked_biases(biases: object) -> dict[int, float]:
    """Return biases as a dict from token ids to floats; ConfigError for values that are not in float32 or infinity."""
    accepted = "a mapping from tokens to numbers"
    if not isinstance(biases, Mapping):
        raise ConfigError(f"logit_bias={show(biases)} cannot be used: logit_bias must be {accepted}")
    checked: dict[int, float] = {}
    for key, value in biases.items():
        token, bias = plain_number(key), plain_number(value)
        if not is_whole(token):
            raise ConfigError(f"logit_bias={show(biases)} cannot be used: the key {show(key)} is not a token id")
        if not (is_number(bias) and (bias == math.inf or is_float32(bias))):
            raise ConfigError(
                f"logit_bias={show(biases)} cannot be used: the bias {show(value)} of {show(key)} must be a finite "
                "number within float32, or float('inf'), which allows no other token"
            )
        checked[token] = float(bias)
    return checked


MOST_SAMPLES = 10**6  # rows of one call; each has a request in memory
MOST_TOKENS = 2**31  # of one row: years of generation, so more is a mistake


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number, Python's or NumPy's, as an int; ConfigError unless it is from `least` to `most`."""
    number: Any = plain_number(value)
    accepted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    require(is_whole(number) and number >= least and (most is None or number <= most), name, value, accepted)
    return number


def is_whole(value: object) -> bool:
    """Return whether this is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether this is a number; True and False are not."""
    return isinstance(value, float) or is_whole(value)


def is_float32(number: float) -> bool:
    """Return whether a number is finite in float32."""
    return -LARGEST <= number <= LARGEST  # False for NaN; a whole number of any size is compared exactly
