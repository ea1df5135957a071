"""Checks and conversions of settings. An error names the setting, its value and what is accepted."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from quill.errors import ConfigError, shorten

TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
"""Words that mean True or False."""

NOTHING = ("none", "null")
"""Words that mean None, in lower case, where None is accepted."""


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """Raise ConfigError unless the condition holds; it names the setting, its value and what is accepted."""
    if not condition:
        raise ConfigError(f"{name}={show(value)} cannot be used: {name} must be {accepted}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the most similar known name, or an empty string."""
    import difflib  # here, because only a mistake needs it

    close = difflib.get_close_matches(name[:100], list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class _ShortRepr(reprlib.Repr):
    """A repr that is cut to fit into a line, however large the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * math.log10(2)) + 1
        return repr(x) if digits <= 40 else f"<a whole number of about {digits} digits>"


_SHORT = _ShortRepr()


def show(value: object) -> str:
    """Return the value's repr for a message, cut to at most 200 characters."""
    return shorten(_SHORT.repr(value), 200)


def plain_number(value: Any) -> Any:
    """Return a number of another library, such as NumPy's, as one of Python's, and anything else as it is."""
    if value is None or type(value) in (int, float, bool, str):
        return value
    import numbers  # here, because only such a number needs it

    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def check_fields(config: Any) -> None:
    """Raise ConfigError for the first field of a dataclass instance whose value does not fit its annotation.

    A whole number is accepted where a float is expected; True and False are never accepted as numbers.
    """
    import dataclasses  # here, because `quill --help` does not need it

    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(_fits(value, hints[field.name]), field.name, value, describe_type(hints[field.name]))


def convert_settings(
    settings: Mapping[str, Any],
    annotations: Mapping[str, Any],
    source: str,
    suggest: Callable[[str, Collection[str]], str] = nearest,
) -> dict[str, Any]:
    """Return the settings of a configuration file as values of the annotated types.

    An unknown name, or a value of a wrong type, is a ConfigError that names the source and the setting.
    """
    where, converted = f"{source}: " if source else "", {}
    for name, value in settings.items():
        if name not in annotations:
            raise ConfigError(f"{where}there is no setting {show(str(name))}{suggest(str(name), annotations)}")
        try:
            converted[name] = convert_value(plain_number(value), annotations[name])
        except ValueError:
            accepted = describe_type(annotations[name])
            hint = ""
            if accepts_text(annotations[name]) and not isinstance(value, str | list | dict | None):
                hint = f"; quotes make it text, as in {name}: '…'"
            raise ConfigError(f"{where}{name}={show(value)} cannot be used: it takes {accepted}{hint}") from None
    return converted


def convert_value(value: object, annotation: Any) -> Any:
    """Return a value read from YAML as the annotated type; ValueError if that is impossible.

    YAML 1.1 reads 1e-3 and None as text: they are converted if a number or None is accepted.
    """
    if isinstance(value, str):
        return convert_text(value, annotation)
    if not _fits(value, annotation):
        raise ValueError(f"{show(value)} is not {describe_type(annotation)}")
    if isinstance(value, list):
        return list(value)
    exact = type(value) is annotation or type(value) in get_args(annotation) or get_origin(annotation) is Literal
    return value if exact else float(str(value))  # a whole number where only a float is accepted


def convert_text(text: str, annotation: Any) -> Any:
    """Return a text, such as the value of a flag, as the annotated type; ValueError if that is impossible."""
    if get_origin(annotation) in (Union, types.UnionType):
        options = get_args(annotation)
        if type(None) in options and text.lower() in NOTHING:
            return None
        for option in options:
            try:
                return convert_text(text, option)
            except ValueError:
                continue
        raise ValueError(f"{show(text)} is not {describe_type(annotation)}")
    if get_origin(annotation) is Literal:
        for choice in get_args(annotation):
            if text == str(choice):
                return choice
    elif annotation is bool and text.lower() in TRUTH:
        return TRUTH[text.lower()]
    elif annotation is int:
        return int(text)  # over 4300 digits are a ValueError too
    elif annotation is float and not math.isnan(number := float(text)):
        return number
    elif annotation is str:
        return text
    raise ValueError(f"{show(text)} is not {describe_type(annotation)}")


def describe_type(annotation: Any) -> str:
    """Return what a field of this type accepts, in words: "a whole number or None"."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return "a list"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return words[annotation]


def accepts_text(annotation: Any) -> bool:
    """Return whether any text is a value of this type."""
    return annotation is str or str in get_args(annotation)


def _fits(value: object, annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_fits(item, get_args(annotation)[0]) for item in value)
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, int | float)
    return isinstance(value, annotation)
