"""Checks of settings: a failure is a ConfigError that names the setting, its value and what would be accepted."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from quill.errors import ConfigError


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """Raise ConfigError, naming the setting, its value and what would be accepted, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}={value!r} cannot be used: {name} must be {accepted}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name that is most like this one, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_fields(config: Any) -> None:
    """Check every field of a dataclass instance against its annotation, so that a wrong type fails by name.

    A whole number is accepted where a float is expected; True and False are never accepted as numbers.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(_fits(value, hints[field.name]), field.name, value, describe_type(hints[field.name]))


def describe_type(annotation: Any) -> str:
    """Return what a field of this type accepts, in words: "a whole number or None"."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return words[annotation]


def _fits(value: object, annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, int | float)
    return isinstance(value, annotation)
