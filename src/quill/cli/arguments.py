"""Flags, configuration files and their errors: how what a person types becomes the frozen data of the other rooms.

Every field of GPTConfig, ModernConfig and TrainConfig is a flag of the same name (`--n_embd=384`), and its docstring
is its help. Values are settled in layers, each over the one before: defaults, `--config`, the flags themselves.
Types and help come from jsonargparse (https://jsonargparse.readthedocs.io); the wording of errors is ours, because
one line that names the flag, the value and what would do is what a person can act on.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, set_parsing_settings

from quill.errors import ConfigError
from quill.model.config import CONFIGS
from quill.runs.presets import read_config
from quill.runs.settings import MODEL_FIELDS, SHAPES, TRAIN_FIELDS
from quill.training.config import TrainConfig
from quill.validation import describe_type, nearest

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class HelpFormatter(argparse.HelpFormatter):
    """Help that shows each flag as it would be typed, with its default: `--n_embd=384`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=38, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        unset = action.default in (None, "", argparse.SUPPRESS) or isinstance(action.default, list)
        return f"{action.option_strings[-1]}={'…' if unset else action.default}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        choices = map(str, action.choices or (get_args(_type(action)) if get_origin(_type(action)) is Literal else ()))
        choices = list(choices)
        return text if all(choice in text for choice in choices) else f"{text} ({' or '.join(choices)})"


class Parser(ArgumentParser):
    """A jsonargparse parser whose errors are ConfigErrors of one line, and that knows no abbreviations."""

    def __init__(self, command: str, description: str = "") -> None:
        prog = f"quill {command}"
        super().__init__(
            prog=prog, description=description, usage=f"{prog} [--flag=value ...]", allow_abbrev=False,
            formatter_class=HelpFormatter,
        )  # fmt: skip
        self.bare_word = ""

    def take_bare_word(self, name: str) -> None:
        """Let one lone word stand for a flag: `quill train my.txt` means `quill train --dataset=my.txt`."""
        self.bare_word = name
        self.usage = f"{self.prog} [{name}] [--flag=value ...]"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(" ".join(message.split())) from ex

    def read(self, argv: Sequence[str], base: dict[str, Any] | None = None) -> argparse.Namespace:
        """Return every argument's value: defaults, then `base`, then `--config`, then the flags of `argv`.

        `.given` holds the names that `--config` and the flags set. ConfigError for anything that cannot be used.
        """
        words = self._settle(argv)
        given = self._check(lambda: self.parse_args(words, defaults=False), dict(_split(word) for word in words))
        layers = [vars(self.get_defaults()), base or {}]
        if given.get("config") is not None:
            layers.append(self.check_file(*read_config(given["config"])))
        layers.append(vars(given))
        merged = {name: value for layer in layers for name, value in layer.items()}
        asked = frozenset(name for layer in layers[2:] for name in layer) - {"config"}
        return argparse.Namespace(**merged, given=asked)

    def check_file(self, settings: dict[str, Any], source: str) -> dict[str, Any]:
        """Return the settings of a configuration file with their types checked; errors name the file and the key."""
        known = [name for name in (*MODEL_FIELDS, *TRAIN_FIELDS) if f"--{name}" in self._option_string_actions]
        for name in settings:
            if name not in known:
                raise ConfigError(f"{source}: there is no setting {str(name)!r}{nearest(str(name), known)}")
        return vars(self._check(lambda: self.parse_object(settings, defaults=False), settings, f"{source}: "))

    def _check(self, parse: Any, values: dict[str, Any], where: str = "--") -> Any:
        """Run jsonargparse; turn its message of several lines into ours."""
        try:
            return parse()
        except ConfigError as error:
            key = re.search(r'Parser key "([^"]+)"|argument --(\w+): invalid', str(error))
            name = (key[1] or key[2]) if key else ""
            action = self._option_string_actions.get(f"--{name}")
            if action is None:
                raise
            raise ConfigError(
                f"{where}{name}={values.get(name)!r} cannot be used: it takes {_accepted(action)}"
            ) from error

    def _settle(self, argv: Sequence[str]) -> list[str]:
        """Return the words with every flag as `--name=value`: one form, so that no value is taken for a flag."""
        settled, rest = [], list(argv)
        while rest:
            word = rest.pop(0)
            if word == "-h":
                word = "--help"
            if not word.startswith("-") or word == "-":
                settled.append(self._bare(word))
                continue
            name, has_value, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                raise ConfigError(f"unknown flag {name}{self._suggest(name)}; {self.prog} --help lists them all")
            if action.nargs == 0:
                if not has_value or _TRUTH.get(value.lower(), False):
                    settled.append(name)
                continue
            if not has_value:
                if rest and not rest[0].startswith("--") and not (_is_switch(action) and rest[0].lower() not in _TRUTH):
                    value = rest.pop(0)
                elif _is_switch(action):
                    value = "True"
                else:
                    raise ConfigError(f"{name} needs a value: {_accepted(action)}, as in {name}=…")
            if _is_switch(action):
                value = str(_TRUTH.get(value.lower(), value))
            if value == "None" and type(None) in get_args(_type(action)):
                value = "null"  # what jsonargparse, a reader of YAML, calls it
            settled.append(f"{name}={value}")
        return settled

    def _suggest(self, name: str) -> str:
        """Return " (did you mean …?)": the nearest flag, or else the one that the name begins."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        longer = [flag for flag in known if flag.startswith(name)]
        return nearest(name, known) or (f" (did you mean {longer[0]!r}?)" if longer else "")

    def _bare(self, word: str) -> str:
        if self.bare_word:
            return f"--{self.bare_word}={word}"
        if any(not action.option_strings for action in self._actions):
            return word
        raise ConfigError(f"{self.prog} does not know what to do with {word!r}: flags look like --name=value")


def add_configuration(parser: Parser, skip: Iterable[str] = ()) -> None:
    """Give the parser a flag for every field of the models' shapes and of TrainConfig, and `--config`."""
    parser.add_argument(
        "--config",
        type=str,
        help="a preset (modern-laptop, modern, laptop, shakespeare, v2, debug) or a YAML file; flags go on top",
    )
    names = " or ".join(CONFIGS)
    architecture = Literal["classic", "modern"]
    parser.add_argument("--architecture", type=architecture, default="classic", help=f"which GPT: {names}")
    there = {"vocab_size", *skip}
    for title, config in (*((f"the {n} model", c) for n, c in CONFIGS.items()), ("the training", TrainConfig)):
        fields = {f.name for f in dataclasses.fields(config)}
        unwanted: set[str | int] = set(fields & there)
        parser.add_class_arguments(config, skip=unwanted)
        parser._action_groups[-1].title = title
        there |= fields  # what both models have is one flag


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the flat configuration: every field of the chosen model and of the training, by name.

    A field of the other model that was asked for is a ConfigError: it would do nothing.
    """
    chosen = ("architecture", *SHAPES[arguments.architecture])
    for name in arguments.given:
        if name in MODEL_FIELDS and name not in chosen:
            owner = next(other for other, names in SHAPES.items() if name in names)
            raise ConfigError(f"{name} belongs to the {owner} model: leave it out, or use --architecture={owner}")
    return {name: getattr(arguments, name) for name in (*chosen, *TRAIN_FIELDS)}


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name.lstrip("-"), value


def _type(action: argparse.Action) -> Any:
    return getattr(action, "_typehint", None) or action.type


def _is_switch(action: argparse.Action) -> bool:
    return _type(action) is bool or bool in get_args(_type(action))


def _accepted(action: argparse.Action) -> str:
    if action.choices:
        return " or ".join(repr(choice) for choice in action.choices)
    try:
        return describe_type(_type(action))
    except KeyError:
        return "a value"
