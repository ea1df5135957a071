"""One flag of a command: its name, the type of its value, its default and its help."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from quill.errors import ConfigError
from quill.validation import TRUTH, convert_text, describe_type, show


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag `--name=value`. `help` is a function, because reading docstrings costs time and only --help needs them."""

    name: str
    type: Any
    """the annotation of its value: int, float | None, Literal["a", "b"], …"""
    default: Any
    help: Callable[[], str]
    group: str = "options"
    """the title under which --help lists it"""
    repeatable: bool = False
    """each use adds a value to a list"""

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means True."""
        return self.type is bool or bool in get_args(self.type)

    def takes(self, word: str) -> bool:
        """Return whether the word after the flag is its value: for a switch, only a word that means True or False."""
        if self.is_switch:
            return word.lower() in TRUTH or word in self.choices
        return not word.startswith("--")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal, also if it is one of several types."""
        annotations = (self.type, *get_args(self.type))
        return tuple(str(choice) for each in annotations if get_origin(each) is Literal for choice in get_args(each))

    def convert(self, text: str) -> Any:
        """Return the value of `--name=text`; ConfigError if it cannot be used."""
        try:
            return convert_text(text, self.type)
        except ValueError:
            raise ConfigError(f"--{self.name}={show(text)} cannot be used: it takes {self.accepted}") from None

    @property
    def accepted(self) -> str:
        """What the flag takes, in words."""
        return describe_type(self.type)


def flags_of(config: type, group: str) -> Iterator[Flag]:
    """Yield a flag for each field of a dataclass: its annotation is the type, the string below it is the help."""
    annotations = get_type_hints(config)
    for field in dataclasses.fields(config):
        default = None if field.default is dataclasses.MISSING else field.default
        yield Flag(field.name, annotations[field.name], default, _help_of(config, field.name), group)


def _help_of(config: type, name: str) -> Callable[[], str]:
    return lambda: field_docstrings(config)[name]


@functools.cache
def field_docstrings(config: type) -> dict[str, str]:
    """Return the string that follows each field in the source of a dataclass, as one line."""
    source = textwrap.dedent(inspect.getsource(config))
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
