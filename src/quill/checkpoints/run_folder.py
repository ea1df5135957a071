"""The folder of a run: its checkpoints, and which of them is the best and the last."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import yaml

from quill.checkpoints.format import (
    FORMAT,
    MANIFEST,
    STATE,
    WEIGHTS,
    Checkpoint,
    check_weights,
    read_arrays,
    write_tensors,
)
from quill.errors import CheckpointError, ConfigError, QuillError
from quill.files import draft_of, sync_folder, write_atomically
from quill.model.config import CONFIGS, architecture_of
from quill.model.shapes import weight_shapes
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import tokenizer_from_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quill.model.build import Model


def save_checkpoint(
    out_dir: str | Path,
    model: Model,
    tokenizer: Tokenizer,
    *,
    step: int,
    val_loss: float | None,
    best: bool,
    training_tensors: dict[str, Tensor],
    training_metadata: dict[str, Any],
) -> Path:
    """Write a checkpoint, make it `last` (and `best`), delete those that are neither, and return its folder.

    Whatever goes wrong, such as a full disk, is a CheckpointError, and the checkpoints before it are untouched.
    """
    out_dir = Path(out_dir)
    folder = out_dir / "checkpoints" / f"step-{step:06d}"
    draft = draft_of(folder)
    metadata = {
        "format": FORMAT,
        "architecture": architecture_of(model.config),
        "model": asdict(model.config),
        "tokenizer": tokenizer.to_json(),
        "step": step,
        "val_loss": val_loss,
    }
    # named_parameters lists a shared weight once, under its first name, and knows nothing of compiled wrappers.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    try:
        draft.mkdir(parents=True)
        digests = {
            WEIGHTS: write_tensors(draft / WEIGHTS, weights, metadata),
            STATE: write_tensors(draft / STATE, training_tensors, training_metadata),
        }
        manifest = {"step": step, "sha256": digests}
        write_atomically(draft / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        if folder.exists():  # left by a crash before anything pointed to it
            shutil.rmtree(folder)
        os.replace(draft, folder)
        sync_folder(folder.parent)
        for pointer in ("last", "best") if best else ("last",):
            write_atomically(out_dir / pointer, f"{folder.name}\n")
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"cannot save {folder}: {reason}; the checkpoints before it are untouched, "
            f"so make room and go on with --resume=True --out_dir={out_dir}"
        ) from error
    _delete_all_but(out_dir, {name for p in ("last", "best") if (name := _pointed_to(out_dir, p))})
    return folder


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", which: Literal["best", "last"] = "best"
) -> Checkpoint:
    """Read a model from a run directory, a checkpoint folder or a model.safetensors file.

    Its SHA-256 is compared where a manifest lies beside it. Missing, truncated or altered files, and files that no
    Quill wrote, are a CheckpointError.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        path = find_checkpoint(path, which)
    file = path / WEIGHTS if path.is_dir() else path
    arrays, metadata = read_arrays(file)
    try:
        if metadata["format"] != FORMAT or metadata["architecture"] not in CONFIGS:
            raise CheckpointError(
                f"{file} has format {metadata['format']!r} of {metadata['architecture']!r}, "
                f"which this version of Quill does not know: update Quill"
            )
        config = CONFIGS[metadata["architecture"]](**metadata["model"])
        tokenizer = tokenizer_from_json(metadata["tokenizer"])
        step, val_loss = metadata["step"], metadata["val_loss"]
    except (KeyError, TypeError, QuillError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} is not a Quill checkpoint: its header lacks or misstates {error}") from error
    check_weights(arrays, weight_shapes(config), file)
    return Checkpoint(config, arrays, tokenizer, step, val_loss, metadata, file.parent, device)


def find_checkpoint(out_dir: str | Path, which: Literal["best", "last"] = "best") -> Path:
    """Return the folder of a run's best (or last) checkpoint; a run that never evaluated has only a last one."""
    out_dir = Path(out_dir)
    for pointer in (which, "last"):
        name = _pointed_to(out_dir, pointer)
        if name and (out_dir / "checkpoints" / name / WEIGHTS).is_file():
            return out_dir / "checkpoints" / name
    raise CheckpointError(f"{out_dir} holds no checkpoint: train one with quill train --out_dir={out_dir}")


def newest_run(folder: str | Path = ".") -> Path:
    """Return the run directory in this folder (or the folder itself) whose last checkpoint is the newest."""
    folder = Path(folder)
    runs = [run for run in (folder, *folder.iterdir()) if (run / "last").is_file() and (run / "checkpoints").is_dir()]
    if not runs:
        raise CheckpointError("there is no trained model in this folder: train one with quill train, or give --out_dir")
    return max(runs, key=lambda run: (run / "last").stat().st_mtime_ns)


def _pointed_to(out_dir: Path, pointer: str) -> str:
    try:
        return (out_dir / pointer).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _delete_all_but(out_dir: Path, names: set[str]) -> None:
    for folder in (out_dir / "checkpoints").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)


def require_folder(out_dir: Path) -> None:
    """Raise ConfigError when a run cannot live there because a file is in its way."""
    for path in (out_dir, *out_dir.parents):
        if path.exists():
            if not path.is_dir():
                raise ConfigError(
                    f"out_dir={str(out_dir)!r} cannot be a folder: {path} is a file; choose another --out_dir"
                )
            return


def holds_run(out_dir: Path) -> bool:
    """Say whether there is something to lose: a folder without any checkpoint holds nothing yet."""
    return (out_dir / "last").is_file() or any((out_dir / "checkpoints").glob("step-*"))


def write_config(out_dir: Path, settings: dict[str, Any], mark: str = "") -> None:
    """Write the whole configuration where `--config` and `--resume` find it."""
    write_atomically(out_dir / "config.yaml", mark + format_config(settings))


def format_config(settings: dict[str, Any]) -> str:
    """Return the settings as YAML that `--config` reads back."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def remove_run(out_dir: Path) -> None:
    """Delete what a run wrote into this folder, and nothing else that may lie there."""
    for name in ("last", "best", "config.yaml", "metrics.jsonl", "samples.txt", "loss.png"):
        (out_dir / name).unlink(missing_ok=True)
    for folder in (*(out_dir / "checkpoints").glob("step-*"), out_dir / "tensorboard"):
        shutil.rmtree(folder, ignore_errors=True)
