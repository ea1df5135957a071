"""The options of the methods that generate text, and their checks, all before the first token."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypedDict

from quill.engines.random_numbers import SEEDS
from quill.engines.request import Request, SamplingConfig, checked_biases
from quill.errors import ConfigError
from quill.other_names import suggest_name
from quill.tokenizers.base import Tokenizer
from quill.validation import nearest, require, show


class GenerateOptions(TypedDict, total=False):
    """Options of `generate`, `stream` and `complete` besides the prompt and `num_samples`."""

    max_new_tokens: int
    """how many tokens to generate at most (500)"""
    temperature: float
    """divides the logits: 0 takes the likeliest token, 1 keeps the model's probabilities, above 1 evens them out (0.8)
    """
    top_k: int | None
    """keep only the k likeliest tokens (None: all)"""
    top_p: float | None
    """keep only the likeliest tokens that together have this probability (None: all)"""
    min_p: float | None
    """keep only tokens at least this fraction as likely as the likeliest one (None: all)"""
    presence_penalty: float
    """subtracted from the logit of every token that was generated before (0)"""
    frequency_penalty: float
    """subtracted from the logit of a token for each time that it was generated before (0)"""
    repetition_penalty: float
    """divides positive logits of tokens in the prompt or the text, and multiplies negative ones (1: neither)"""
    logit_bias: Mapping[int | str, float] | None
    """added to the logits of these tokens, given by id or by text; float("inf") allows no other token (None)"""
    seed: int | None
    """the same seed gives the same text (None: another text each time)"""
    stop: str | Sequence[str] | None
    """end before this text, or the first of these texts (None)"""
    unknown: Literal["error", "skip"]
    """what to do with characters of the prompt that the vocabulary lacks ("error")"""
    echo: bool
    """whether to put the prompt before the text (False)"""


class OldLoadOptions(TypedDict, total=False):
    """Keywords of earlier versions that still work, with a warning: `which`, `weights` and `tell`."""

    which: Literal["best", "last"]
    weights: Literal["fp32", "int8"]
    tell: Callable[[str], None]


class UnknownOptionError(ConfigError, TypeError):
    """An option that a method does not have. It is also a TypeError, like any unknown keyword in Python."""


OPTIONS: dict[str, tuple[str, ...]] = {
    "generate": ("num_samples", *GenerateOptions.__annotations__),
    "stream": ("num_samples", *GenerateOptions.__annotations__),
    "complete": ("num_samples", "best_of", "logprobs", *GenerateOptions.__annotations__),
}

OLD_NAMES = {"which": "checkpoint", "weights": "quantization", "tell": "on_status"}


def check_names(method: str, options: Iterable[str]) -> None:
    """Raise UnknownOptionError for the first of these options that the method does not have."""
    for name in options:
        if name not in OPTIONS[method]:
            other = next((m for m, names in OPTIONS.items() if name in names), "")
            hint = f": {other} has it" if other else suggest_name(name, OPTIONS[method])
            raise UnknownOptionError(f"{method} has no option {show(name)}{hint}")


def renamed(old: OldLoadOptions) -> dict[str, Any]:
    """Return keywords of earlier versions under their current names, with a FutureWarning for each."""
    new: dict[str, Any] = {}
    for name, value in old.items():
        if name not in OLD_NAMES:
            raise UnknownOptionError(
                f"there is no option {show(name)}{nearest(name, ('checkpoint', 'device', 'engine', 'quantization'))}"
            )
        value = None if (name, value) == ("weights", "fp32") else value
        shown = "…" if callable(value) else show(value)
        message = f"{name}= is now called {OLD_NAMES[name]}=: use {OLD_NAMES[name]}={shown}"
        warnings.warn(message, FutureWarning, stacklevel=3)
        new[OLD_NAMES[name]] = value
    return new


def make_request(tokenizer: Tokenizer, prompt: str, options: GenerateOptions, logprobs: int | None) -> Request:
    """Return the request for the first row; an impossible value is a ConfigError or a TokenizerError."""
    settings: dict[str, Any] = {"max_new_tokens": 500, "temperature": 0.8, **options}
    require(isinstance(settings.get("echo", False), bool), "echo", settings.get("echo"), "True or False")
    names = [field.name for field in fields(SamplingConfig)]
    seed, biases = settings.get("seed"), settings.get("logit_bias")
    return Request(
        tuple(encode_prompt(tokenizer, prompt, settings.get("unknown", "error"))),
        settings["max_new_tokens"],
        SamplingConfig(**{name: settings[name] for name in names if name in settings}),
        secrets.randbelow(SEEDS) if seed is None else seed,
        logit_bias=checked_biases({} if biases is None else _by_token_id(tokenizer, biases)),
        logprobs=logprobs,
    )


def encode_prompt(tokenizer: Tokenizer, prompt: str, unknown: str) -> list[int]:
    """Return the tokens of a prompt, at least one; `unknown` is what to do with characters without a token."""
    require(isinstance(prompt, str), "prompt", prompt, "text")
    require(unknown in ("error", "skip"), "unknown", unknown, "'error' or 'skip'")
    if prompt == "":
        raise ConfigError("the prompt is empty: give at least one character to continue, a line break for example")
    known = tokenizer.drop_unknown(prompt) if unknown == "skip" else prompt
    if known == "":
        raise ConfigError(f"the prompt {show(prompt)} has no character that the vocabulary has: give another prompt")
    return tokenizer.encode(known).tolist()


def _by_token_id(tokenizer: Tokenizer, biases: object) -> object:
    """Return a mapping with its text keys replaced by token ids; anything else as it is."""
    if not isinstance(biases, Mapping):
        return biases
    by_id: dict[Any, Any] = {}
    for key, bias in biases.items():
        token = key
        if isinstance(key, str):
            tokens = tokenizer.encode(key).tolist()
            require(len(tokens) == 1, "logit_bias", key, "the text of a single token, or its id")
            token = tokens[0]
        require(token not in by_id, "logit_bias", biases, f"without {show(key)} twice, as text and as id")
        by_id[token] = bias
    return by_id
