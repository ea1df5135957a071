"""Presets and configuration files: YAML in, flat settings out."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from quill.errors import ConfigError
from quill.validation import nearest


def preset_names() -> list[str]:
    """Return the names of the presets that come with Quill."""
    return sorted(f.name[:-5] for f in (resources.files("quill") / "presets").iterdir() if f.name.endswith(".yaml"))


def read_config(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a preset, a YAML file or a run directory, and what to call that source in messages."""
    if name in preset_names():
        source, text = (
            f"preset {name}",
            (resources.files("quill") / "presets" / f"{name}.yaml").read_text("utf-8"),
        )
    else:
        path = Path(name)
        if path.is_dir():
            path = path / "config.yaml"
        source = str(path)
        try:
            text = path.read_text("utf-8-sig")
        except FileNotFoundError as error:
            hint = nearest(name, preset_names()) or f" (presets: {', '.join(preset_names())})"
            raise ConfigError(f"--config={name!r} is neither a preset nor a file{hint}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config={name!r} cannot be read: {error}") from error
    return parse_config(text, source), source


def parse_config(text: str, source: str) -> dict[str, Any]:
    """Return the settings in a YAML text, `name: value` a line; ConfigError when it is something else."""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{source} is not YAML{line}: {getattr(error, 'problem', None) or error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} holds no settings: it should have a `name: value` on each line")
    return settings
