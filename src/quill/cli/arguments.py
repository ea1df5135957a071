"""The parser of the command line: the flags of a command, and their values.

Every field of the configurations of model, training and run is a flag of the same name (`--n_embd=384`). Its annotation
is the flag's type, and its docstring is the help. runs/settings.py merges defaults, configuration file and flags.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from quill.cli.parsing.flag import Flag, flags_of
from quill.cli.parsing.help_page import help_page
from quill.errors import ConfigError
from quill.model.config import CONFIGS
from quill.other_names import suggest_flag, suggest_value
from quill.runs.presets import preset_names, read_settings
from quill.runs.settings import FIELDS, OLD_NAMES, RunSettings, Settings, resolve_settings
from quill.training.config import TrainConfig
from quill.validation import show


class Parser:
    """The flags of one command. `read` converts words to values; a word that cannot be used is a ConfigError."""

    def __init__(self, command: str, description: str = "") -> None:
        self.prog, self.description = f"quill {command}", description
        self.flags: dict[str, Flag] = {}
        self.bare_word, self.several_words = "", False
        self.old_names: dict[str, tuple[str, Mapping[str, str]]] = {}
        self.add_argument("--help", type=bool, default=False, help="show this page and exit")

    def add_argument(
        self,
        name: str,
        *,
        type: Any = str,
        default: Any = None,
        help: str = "",
        action: Literal["", "store_true", "append"] = "",
        group: str = "options",
    ) -> None:
        """Add the flag `--name`, with the signature of argparse.

        `type` is the annotation of the value. `action` is "store_true" for a switch that is off, "append" for a flag
        that may be repeated.
        """
        if action == "store_true":
            type, default = bool, False
        self.add_flag(Flag(name.lstrip("-"), type, default, lambda: help, group, repeatable=action == "append"))

    def add_flag(self, flag: Flag) -> None:
        """Add a flag; a second flag of the same name is a ValueError."""
        if flag.name in self.flags:
            raise ValueError(f"{self.prog} already has a flag --{flag.name}")
        self.flags[flag.name] = flag

    def take_bare_word(self, name: str, several: bool = False) -> None:
        """Use a bare word as the value of a flag: `quill train my.txt` means `quill train --dataset=my.txt`.

        With `several`, two or more words become a list.
        """
        self.bare_word, self.several_words = name, several

    def accept_old_name(self, old: str, new: str, values: Mapping[str, str] | None = None) -> None:
        """Accept the name of a flag in earlier versions; `values` maps old values to new ones."""
        self.old_names[old] = (new, values or {})

    def set_defaults(self, **defaults: Any) -> None:
        """Change the defaults of flags that were added before."""
        for name, default in defaults.items():
            self.flags[name] = dataclasses.replace(self.flags[name], default=default)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the value of every flag, defaults included; ConfigError for words that cannot be used.

        Besides the flags it has `given`, a dict of those in `argv`, and `notes`, lines of advice for the user. `help`
        is True if --help was given; words after it are ignored.
        """
        given: dict[str, Any] = {}
        argv = ["--help"] if list(argv) == ["help"] else argv
        words: list[str] = []
        notes: list[str] = []
        for flag, text in self._split(argv, notes):
            if flag is None:
                words.append(text)
                continue
            value = flag.convert(text)
            if flag.repeatable:
                given.setdefault(flag.name, []).append(value)
            elif given.setdefault(flag.name, value) != value:
                raise ConfigError(
                    f"--{flag.name} is given twice, as {show(given[flag.name])} and as {show(value)}: "
                    f"it takes one value, so leave one out"
                )
            if given.get("help"):
                break
        if words and not given.get("help"):
            self._add_bare_words(words, given)
        defaults = {name: copy.copy(flag.default) for name, flag in self.flags.items()}
        return argparse.Namespace(**{"config": None} | defaults | given, given=given, notes=notes)

    def format_help(self) -> str:
        """Return the text of --help, as wide as the terminal."""
        word = f"[{self.bare_word}{' …' if self.several_words else ''}] " if self.bare_word else ""
        first = [flag for name, flag in self.flags.items() if name != "help"]
        return help_page(f"{self.prog} {word}[--flag=value ...]", self.description, [*first, self.flags["help"]])

    def _split(self, argv: Sequence[str], notes: list[str]) -> Iterator[tuple[Flag | None, str]]:
        """Yield each flag with the text of its value, and None with each bare word."""
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if word == "--":  # all that follows are bare words, as in other programs
                yield from ((None, each) for each in rest)
                return
            if not word.startswith("-") or word == "-":
                yield None, word
                continue
            typed, has_value, text = word.partition("=")
            flag, values = self._flag(typed)
            if not has_value:
                if rest and flag.takes(rest[0]):
                    text = rest.pop(0)
                elif flag.is_switch:
                    text = "True"
                else:
                    raise ConfigError(f"{typed} needs a value: {flag.accepted}, as in {typed}=…")
            if flag.name != typed[2:].replace("-", "_") and typed != "-h":
                text = values.get(text, text)
                notes.append(f"{typed} is now called --{flag.name}: use --{flag.name}={text}")
            if (advice := suggest_value(flag.name, text)) and text not in flag.choices:
                raise ConfigError(f"{typed}={show(text)} cannot be used: {advice}")
            yield flag, text

    def _flag(self, typed: str) -> tuple[Flag, Mapping[str, str]]:
        """Return the flag that was typed, and a map of its old values to new ones."""
        name = "help" if typed == "-h" else typed.removeprefix("--").replace("-", "_")  # --out-dir is --out_dir
        if typed.startswith("--") or typed == "-h":
            if name in self.flags:
                return self.flags[name], {}
            if name in self.old_names and self.old_names[name][0] in self.flags:
                new, values = self.old_names[name]
                return self.flags[new], values
        shown = show(typed)[1:-1]
        raise ConfigError(f"unknown flag {shown}{suggest_flag(typed, self.flags)}; {self.prog} --help lists them all")

    def _add_bare_words(self, words: list[str], given: dict[str, Any]) -> None:
        """Add the bare words as the value of their flag."""
        for word in words:
            name, equals, text = word.partition("=")
            if equals and name in self.flags:
                raise ConfigError(f"flags begin with two hyphens: did you mean --{show(name + '=' + text)[1:-1]}?")
        name = self.bare_word
        if not name:
            raise ConfigError(
                f"{self.prog} does not know what to do with {show(words[0])}: flags look like --name=value"
            )
        if len(words) > 1 and not self.several_words:
            raise ConfigError(
                f"{self.prog} takes one {name}, and {show(words[0])} and {show(words[1])} were given: "
                f"put quotes around a {name} with spaces in it"
            )
        value = (
            [self.flags[name].convert(word) for word in words] if len(words) > 1 else self.flags[name].convert(words[0])
        )
        if given.setdefault(name, value) != value:
            raise ConfigError(
                f"{name} is given twice, as {show(words[0])} and as --{name}={show(given[name])}: leave one out"
            )


def add_configuration(parser: Parser) -> None:
    """Add a flag for every setting of a run (runs/settings.py), and `--config`."""
    about = lambda: f"a preset ({', '.join(preset_names())}) or a YAML file; flags override it"  # noqa: E731
    parser.add_flag(Flag("config", str, None, about))
    parser.add_argument(
        "--architecture",
        type=Literal[tuple(CONFIGS)],
        default="classic",
        help="classic is GPT-2's model, modern adds what later models improved",
        group="the model",
    )
    names = [{field.name for field in dataclasses.fields(config)} for config in CONFIGS.values()]
    shared = set[str].intersection(*names)
    groups = [(f"the {name} model only", config) for name, config in CONFIGS.items()]
    for group, config in (*groups, ("training", TrainConfig), ("the run", RunSettings)):
        for flag in flags_of(config, group):
            if flag.name in shared:
                flag = dataclasses.replace(flag, group="the model")
            if flag.name not in {"vocab_size", *parser.flags}:
                parser.add_flag(flag)
    for old, new in OLD_NAMES.items():
        if new in parser.flags and old not in parser.flags:
            parser.accept_old_name(old, new)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of a run: flags override the file of `--config`, and the file overrides defaults."""
    file, source = read_settings(arguments.config) if arguments.config is not None else ({}, "")
    given = {name: value for name, value in arguments.given.items() if name in FIELDS}
    return resolve_settings(given, file, source=source)
