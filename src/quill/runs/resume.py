"""Resume a run, or refuse to overwrite one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quill.checkpoints.run_folder import holds_run
from quill.cli.arguments import asked_settings, settings_of
from quill.errors import CheckpointError, ConfigError
from quill.runs.presets import check_settings, parse_config

# What may change when a run goes on: how long, how fast, how it is watched and where; never the model or its text.
RESUMABLE = frozenset(
    {
        "out_dir", "data_dir", "max_iters", "patience", "eval_interval", "eval_iters", "log_interval", "sample_tokens",
        "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "grad_clip", "device", "dtype",
        "compile", "gradient_checkpointing", "tensorboard",
    }
)  # fmt: skip


def resumed_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of the run in out_dir, new flags on top; ConfigError for one that changes the model."""
    out_dir = Path(arguments.out_dir)
    stored = stored_settings(out_dir)
    if stored is None or not holds_run(out_dir):
        raise CheckpointError(f"{out_dir} holds no run to go on with: leave out --resume=True to start one")
    asked = asked_settings(arguments)
    for name, value in asked.items():
        if name not in RESUMABLE and value != stored.get(name, value):
            raise ConfigError(
                f"--{name}={value} cannot be changed when a run goes on ({out_dir} has {name}={stored[name]}): "
                f"leave it out, or start another run with another --out_dir"
            )
    arguments.architecture = stored.get("architecture", "classic")
    return settings_of(arguments) | stored | asked | {"out_dir": str(out_dir)}


def refuse_existing_run(out_dir: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError when out_dir holds a run, naming what differs: hours of training are not lost by chance."""
    if not holds_run(out_dir):
        return
    stored = stored_settings(out_dir) or {}
    different = [name for name in settings if name in stored and stored[name] != settings[name] and name != "out_dir"]
    again = "start over with --overwrite=True, or choose another --out_dir"
    if not different:
        raise ConfigError(f"{out_dir} already holds this run: go on with --resume=True, {again}")
    shown = "; ".join(f"{name}={stored[name]}, here {settings[name]}" for name in different[:3])
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    onwards = "go on with --resume=True, " if RESUMABLE.issuperset(different) else ""
    raise ConfigError(f"{out_dir} already holds a run with another configuration ({shown}{more}): {onwards}{again}")


def stored_settings(out_dir: Path) -> dict[str, Any] | None:
    """Return the configuration that a run was started with, types checked; None where there is none."""
    file = out_dir / "config.yaml"
    if not file.is_file():
        return None
    return check_settings(parse_config(file.read_text(encoding="utf-8"), str(file)), str(file))
