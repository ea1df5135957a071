"""Presets and configuration files: YAML in, flat settings out."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from quill.errors import ConfigError
from quill.files import expand_home
from quill.runs.settings import check_settings
from quill.validation import nearest, show

LARGEST_FILE = 1_000_000
"""Maximum size of a configuration file, in bytes."""

DEEPEST = 4
"""Maximum depth of nested collections in a configuration file."""


def preset_names() -> list[str]:
    """Return the names of the presets that come with Quill."""
    return sorted(f.name[:-5] for f in (resources.files("quill") / "presets").iterdir() if f.name.endswith(".yaml"))


def read_config(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a preset, a YAML file or a run directory, and the name of that source for messages."""
    if name in preset_names():
        text = (resources.files("quill") / "presets" / f"{name}.yaml").read_text("utf-8")
        return parse_config(text, f"preset {name}"), f"preset {name}"
    path = expand_home(name)
    if path.is_dir():
        path = path / "config.yaml"
        if not path.exists():
            raise ConfigError(f"config={show(name)} is a folder without a config.yaml: give a file or a run's folder")
    return parse_config(_read_text(path, name), str(path)), str(path)


def _read_text(path: Path, name: str) -> str:
    """Return the contents of a configuration file; ConfigError if it is not a text file, or far too large."""
    shown = f"config={show(name)}"
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{shown} is a device or a pipe: give a file")
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError as error:
        hint = nearest(name, preset_names()) or f" (presets: {', '.join(preset_names())})"
        raise ConfigError(f"{shown} is neither a preset nor a file{hint}") from error
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ConfigError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{shown} has more than {LARGEST_FILE:,} bytes: a configuration has a `name: value` a line")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8") from error


def parse_config(text: str, source: str) -> dict[str, Any]:
    """Return the settings in a YAML text, one `name: value` per line; ConfigError if it is something else.

    Aliases are refused, because with them a short text can expand to billions of values.
    """
    import yaml  # here, because most commands do not need it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_structure(yaml.parse(text, Loader=loader), source)
        settings = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01, a number of 5000 digits
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f" (line {min(mark.line, text.count(chr(10))) + 1})" if mark else ""  # an end may be a line too far
        raise ConfigError(f"{source} is not YAML{line}: {getattr(error, 'problem', None) or error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} holds no settings: it should have a `name: value` on each line")
    return settings


def _check_structure(events: Iterable[Any], source: str) -> None:
    """Raise ConfigError for a YAML text with aliases, deep nesting or a duplicate setting."""
    import yaml

    depth, names, is_name = 0, set[str](), False
    for event in events:
        where = f"{source} (line {event.start_mark.line + 1})"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{where} uses YAML's anchors (& and *), which a configuration may not: write each value")
        if depth == 1 and isinstance(event, yaml.NodeEvent):
            is_name = not is_name  # names and values of settings alternate
            if is_name and isinstance(event, yaml.ScalarEvent):
                if event.value in names:
                    raise ConfigError(f"{where} sets {show(event.value)} a second time: leave one out")
                names.add(event.value)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{where} is nested too deeply: a configuration has a `name: value` on each line")


def read_settings(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a preset, a YAML file or a run directory with their types checked, and its name."""
    settings, source = read_config(name)
    return check_settings(settings, source), source
