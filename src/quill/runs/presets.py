"""Presets and configuration files: YAML in, flat settings out."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from quill.errors import ConfigError
from quill.model.config import CONFIGS
from quill.training.config import TrainConfig
from quill.validation import convert_settings, nearest

OLD_NAMES = {"windows": "data_order"}
"""Settings that had another name in earlier versions: old name, new name."""


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
    import yaml  # here, because most commands need none of it

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


def setting_types() -> dict[str, Any]:
    """Return the annotation of every setting that a configuration file may have, by name."""
    types: dict[str, Any] = {"architecture": Literal[tuple(CONFIGS)]}
    for config in (*CONFIGS.values(), TrainConfig):
        types |= get_type_hints(config)
    return {name: kind for name, kind in types.items() if name != "vocab_size"}


def read_settings(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a preset, a YAML file or a run directory with their types checked, and its name."""
    settings, source = read_config(name)
    return check_settings(settings, source), source


def check_settings(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings as values of their types, old names as new ones; errors name the source and the setting."""
    types = setting_types()
    renamed = {
        OLD_NAMES[name] if name not in types and OLD_NAMES.get(name) in types else name: value
        for name, value in settings.items()
    }
    return convert_settings(renamed, types, source)
