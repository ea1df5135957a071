"""Resume a run, or refuse to overwrite one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quill.checkpoints.config_file import require_unchanged
from quill.checkpoints.run_folder import find_checkpoint, holds_run, suggest_run
from quill.distributed.environment import count_restarts
from quill.errors import CheckpointError, ConfigError, QuillError
from quill.runs.presets import read_config
from quill.runs.settings import Settings, check_settings, resolve_settings
from quill.training.config import FREE_ON_RESUME

# Settings that may change when a run is resumed: its length, speed, logging and paths; never the model or its text.
RESUMABLE = FREE_ON_RESUME | {
    "out_dir", "data_dir", "dataset", "log_interval", "sample_tokens", "device", "dtype", "compile",
    "gradient_checkpointing", "parallel", "tensorboard", "film",
}  # fmt: skip


def resumed_settings(out_dir: Path, given: Mapping[str, Any]) -> Settings:
    """Return the settings of the run in out_dir, overridden by the given ones.

    A given setting that changes the model or recipe is a ConfigError. A folder without a run, and a configuration that
    was changed since the run wrote it, are a CheckpointError.
    """
    if not holds_run(out_dir):
        other = suggest_run()
        advice = "name its folder as out_dir" if other else "start one first, for instance with minutes=5"
        raise CheckpointError(f"{out_dir} holds no run to resume{other}: {advice}")
    try:
        stored = stored_settings(out_dir)
    except ConfigError:
        _require_unchanged(out_dir)  # a value that cannot be used, because it is damaged
        raise
    if stored is None:
        raise CheckpointError(
            f"{out_dir} has lost its config.yaml, so its run cannot be resumed: put the file back, or start a new run "
            f"with init_from={out_dir}"
        )
    _require_unchanged(out_dir)
    given = check_settings(given)
    for name, value in given.items():
        if name not in RESUMABLE and value != stored[name]:
            raise ConfigError(
                f"{name}={value} cannot be changed when a run is resumed ({out_dir} has {name}={stored[name]}): "
                f"leave it out, or start another run in another out_dir"
            )
    return resolve_settings(given, stored, source=str(out_dir / "config.yaml")) | {"out_dir": str(out_dir)}


def continues_after_restart(out_dir: Path) -> bool:
    """Return whether torchrun has restarted this process, after the run that it started had saved a checkpoint.

    An earlier run in out_dir, which this one may be about to replace, has older checkpoints than torchrun's process.
    """
    if not count_restarts() or not holds_run(out_dir):
        return False
    import psutil

    launched = psutil.Process(os.getppid()).create_time()
    return find_checkpoint(out_dir, "last").stat().st_mtime >= launched


def _require_unchanged(out_dir: Path) -> None:
    require_unchanged(out_dir, read_config(str(out_dir / "config.yaml"))[0])


def refuse_existing_run(out_dir: Path, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if out_dir holds a run; it names the settings that differ. No run is lost by accident."""
    if not holds_run(out_dir):
        return
    stored = stored_settings(out_dir)
    if stored is None:
        raise ConfigError(
            f"{out_dir} holds a run that has lost its config.yaml: put the file back, start over with "
            "overwrite=True, or choose another out_dir"
        )
    different = [name for name in settings if name in stored and stored[name] != settings[name] and name != "out_dir"]
    again = "start over with overwrite=True, or choose another out_dir"
    if not different:
        raise ConfigError(f"{out_dir} already holds this run: resume it with resume=True, {again}")
    shown = "; ".join(f"{name}={stored[name]}, here {settings[name]}" for name in different[:3])
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    resuming = "resume it with resume=True, " if RESUMABLE.issuperset(different) else ""
    raise ConfigError(f"{out_dir} already holds a run with other settings ({shown}{more}): {resuming}{again}")


def refuse_foreign_files(out_dir: Path) -> None:
    """Raise ConfigError if out_dir has files with the names of a run's files that no run wrote (T6)."""
    names = ("config.yaml", "metrics.jsonl", "samples.txt", "loss.png", "film.safetensors", "tensorboard")
    there = [name for name in names if (out_dir / name).exists()]
    if not there or holds_run(out_dir):
        return
    try:
        ours = stored_settings(out_dir) is not None
    except QuillError:
        ours = False
    if not ours:
        raise ConfigError(f"{out_dir} holds {there[0]}, which no run of Quill wrote: choose another out_dir")


def stored_settings(out_dir: Path) -> Settings | None:
    """Return the settings that a run was started with, types checked; None if there is no config.yaml.

    A run's own file is complete. If it lacks a setting it was cut or edited, which is a CheckpointError (U22).
    """
    if not (out_dir / "config.yaml").is_file():
        return None
    stored, source = read_config(str(out_dir / "config.yaml"))  # a folder may be named like a preset
    settings = resolve_settings({}, stored, source=source)
    known = check_settings(stored, source)
    missing = [name for name in settings if name not in known and name not in ADDED]
    if missing:
        raise CheckpointError(
            f"{source} is not complete (it lacks {missing[0]}): it was cut or edited; put the whole file back"
        )
    return settings


ADDED = frozenset({"init_from", "vocab", "film", "parallel"})
"""Settings that are missing in runs of earlier versions."""
