"""The fields of a request for completions, and the texts to be generated that follow from them.

Names and meanings are those of OpenAI's API. `top_k`, `min_p`, `repetition_penalty` and `return_token_ids` are
extensions that other servers have too. Fields that are not here are ignored.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from quill.engines.request import Request, SamplingConfig
from quill.errors import TokenizerError
from quill.model.config import ModelConfig
from quill.server.errors import ApiError
from quill.server.settings import Limits
from quill.tokenizers.base import Tokenizer, check_tokens

Count = Annotated[int, Meta(ge=1)]
Prompt = str | list[str | int | list[int]]


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionFields(msgspec.Struct, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        Prompt | None,
        Meta(description="a text, a list of texts, token ids, or a list of lists of token ids"),
    ] = None
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, description="0 and -1 keep all tokens")] | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, description="another name of repetition_penalty")] | None = None
    logit_bias: Annotated[dict[str, float], Meta(description="token ids as text")] | None = None
    seed: Annotated[int, Meta(ge=-1, description="null or -1: another text each time")] | None = None
    n: Count | None = None
    best_of: Count | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0)] | bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    suffix: Annotated[str, Meta(max_length=0, description="not supported")] | None = None
    user: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a request asks for, checked: its prompts as tokens, and the texts to generate for each."""

    prompts: Sequence[Sequence[int]]
    requests: Sequence[Request]
    """one for each text: prompt by prompt, `best_of` for each"""
    n: int
    best_of: int
    """number of texts that are generated for a prompt; the `n` likeliest are returned"""
    stops: tuple[str, ...]
    echo: bool
    logprobs: int | None
    token_ids: bool
    """whether token ids are returned"""


def plan_of(fields: CompletionFields, tokenizer: Tokenizer, config: ModelConfig, limits: Limits) -> Plan:
    """Return the texts to be generated; ApiError, ConfigError or TokenizerError for values that cannot be used."""
    prompts = prompts_of(fields.prompt, tokenizer, limits)
    n = 1 if fields.n is None else fields.n
    best_of = n if fields.best_of is None else fields.best_of
    max_tokens = 16 if fields.max_tokens is None else fields.max_tokens
    echo, logprobs = bool(fields.echo), logprobs_of(fields.logprobs)
    if best_of < n:
        raise ApiError(400, f"best_of={best_of} is less than n={n}", param="best_of")
    if best_of > n and fields.stream:
        raise ApiError(
            400, "best_of cannot be streamed: the best texts are known when all are complete", param="best_of"
        )
    if max_tokens == 0 and not echo:
        raise ApiError(400, "max_tokens=0 generates nothing: it needs echo", param="max_tokens")
    if logprobs is not None and logprobs > config.vocab_size:
        raise ApiError(
            400, f"logprobs={logprobs} is more than the vocabulary has: {config.vocab_size}", param="logprobs"
        )
    longest = max(map(len, prompts))
    check_size(len(prompts), best_of, max_tokens, limits)
    scored = len(prompts) * best_of * (max_tokens + echo * longest) * ((logprobs or 0) + 1)
    if logprobs is not None and scored > limits.logprobs:
        message = f"the answer has {scored:,} log-probabilities, more than the limit of {limits.logprobs:,}"
        raise ApiError(400, message, param="logprobs")
    if echo and logprobs is not None and longest > config.block_size:
        message = f"a prompt of {longest:,} tokens cannot be scored: the model reads {config.block_size:,} tokens"
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")
    # A mean log-probability decides which texts are the best.
    needed = 0 if logprobs is None and best_of > n else logprobs
    first = Request(
        tuple(prompts[0]), max_tokens, sampling_of(fields), seed_of(fields.seed), 0,
        biases_of(fields.logit_bias, config.vocab_size), needed,
    )  # fmt: skip
    requests = [replace(first, prompt=tuple(prompt), row=row) for prompt in prompts for row in range(best_of)]
    return Plan(
        prompts, requests, n, best_of, stops_of(fields.stop, limits), echo, logprobs, bool(fields.return_token_ids)
    )


def prompts_of(prompt: Prompt | None, tokenizer: Tokenizer, limits: Limits) -> list[list[int]]:
    """Return each prompt as tokens, at least one of at least one token."""
    empty = ApiError(400, "the prompt is empty: give at least one token to continue", param="prompt")
    if prompt is None or not len(prompt):
        raise empty
    if isinstance(prompt, str):
        given: list[Any] = [prompt]
    elif all(isinstance(each, int) for each in prompt):
        given = [prompt]
    elif all(isinstance(each, str) for each in prompt) or all(isinstance(each, list) for each in prompt):
        given = prompt
    else:
        raise ApiError(400, "a prompt is a text, token ids, or a list of one of them", param="prompt")
    if len(given) > limits.prompts:
        raise ApiError(400, f"{len(given):,} prompts are more than the limit of {limits.prompts:,}", param="prompt")
    prompts = []
    for each in given:
        if not len(each):
            raise empty
        if len(each) > 4 * limits.prompt_tokens:
            raise _too_long(limits)
        try:
            tokens = tokenizer.encode(each) if isinstance(each, str) else check_ids(each, tokenizer)
        except TokenizerError as error:
            raise ApiError(400, str(error), param="prompt") from None
        prompts.append(tokens.tolist())
        if sum(map(len, prompts)) > limits.prompt_tokens:
            raise _too_long(limits)
    return prompts


def check_ids(tokens: Sequence[int], tokenizer: Tokenizer) -> Any:
    """Return token ids as an array; TokenizerError for one that the vocabulary lacks."""
    large = next((token for token in tokens if not 0 <= token < tokenizer.vocab_size), None)
    if large is not None:
        raise TokenizerError(f"{str(large)[:30]} is not a token: the vocabulary has 0 to {tokenizer.vocab_size - 1}")
    return check_tokens(tokens, tokenizer.vocab_size)


def _too_long(limits: Limits) -> ApiError:
    return ApiError(
        400, f"the prompt has more than the limit of {limits.prompt_tokens:,} tokens", param="prompt",
        code="context_length_exceeded",
    )  # fmt: skip


def check_size(num_prompts: int, best_of: int, max_tokens: int, limits: Limits) -> None:
    """Raise ApiError if a request generates too many texts or tokens."""
    texts = num_prompts * best_of
    if texts > limits.texts:
        message = f"{num_prompts:,} prompts times {best_of:,} texts are more than the limit of {limits.texts:,} texts"
        raise ApiError(400, message, param="n")
    if texts * max_tokens > limits.tokens:
        message = f"{texts:,} texts of max_tokens={max_tokens:,} are more than the limit of {limits.tokens:,} tokens"
        raise ApiError(400, message, param="max_tokens")


def logprobs_of(logprobs: int | bool | None) -> int | None:
    """Return for how many of the likeliest tokens log-probabilities are returned; None for none at all."""
    if logprobs is None or logprobs is False:
        return None
    return int(logprobs)


def sampling_of(fields: CompletionFields) -> SamplingConfig:
    """Return how tokens are chosen; ConfigError for values that cannot be used."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given: Mapping[str, float] = {name: value for name in names if (value := getattr(fields, name)) is not None}
    if fields.repetition_penalty is None and fields.repeat_penalty is not None:
        given = {**given, "repetition_penalty": fields.repeat_penalty}
    top_k = fields.top_k if fields.top_k and fields.top_k > 0 else None
    return SamplingConfig(top_k=top_k, **given)


def seed_of(seed: int | None) -> int:
    """Return the seed, or a random one for null and -1."""
    return secrets.randbelow(2**31) if seed is None or seed == -1 else seed


def biases_of(biases: Mapping[str, float] | None, vocab_size: int) -> dict[int, float]:
    """Return what is added to the logit of each token id."""
    by_id = {}
    for key, bias in (biases or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            message = f"logit_bias has the key {key[:30]!r}: keys are token ids as text, from 0 to {vocab_size - 1}"
            raise ApiError(400, message, param="logit_bias")
        by_id[int(key)] = bias
    return by_id


def stops_of(stop: str | Sequence[str] | None, limits: Limits) -> tuple[str, ...]:
    """Return the stop strings."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > limits.stops:
        raise ApiError(400, f"{len(stops):,} stop strings are more than the limit of {limits.stops}", param="stop")
    if not all(stops):
        raise ApiError(400, "a stop string is empty", param="stop")
    if max(map(len, stops), default=0) > limits.stop_length:
        message = f"a stop string has more than the limit of {limits.stop_length} characters"
        raise ApiError(400, message, param="stop")
    return stops
