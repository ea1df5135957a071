"""Checkpoints that survive a crash, name their own contents, and hold no code.

    out/best  out/last                        small text files: the name of a folder in out/checkpoints
    out/checkpoints/step-000500/
        model.safetensors                     weights, with configuration and tokenizer in its header: enough to write
        training.safetensors                  optimizer state and random-number state: enough to go on
        manifest.json                         SHA-256 of both

A checkpoint is written beside its place and renamed into it, so a crash leaves the old one or the new one, never
half of one. safetensors files cannot run code (unlike pickles) but have no checksum: hence the manifest. PyTorch takes
over a second to import, so it is imported where a model is made, and not to read weights as arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors

from quill.errors import CheckpointError, QuillError
from quill.model.config import CONFIGS, ModelConfig, architecture_of
from quill.model.shapes import weight_shapes
from quill.text.tokenizer import Tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quill.model.build import Model

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training.safetensors", "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A model read back, with what the file says about it."""

    config: ModelConfig
    weights: dict[str, np.ndarray] = field(repr=False)
    """every weight by its name, float32, of the shapes that `config` says; on a CPU those of `model` are the same"""
    tokenizer: Tokenizer
    step: int
    val_loss: float | None
    metadata: dict[str, Any]
    path: Path
    device: torch.device | str
    """where `model` will be"""

    @cached_property
    def model(self) -> Model:
        """The model itself, in evaluation mode, made when it is first asked for."""
        import torch

        from quill.model.build import build_model

        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away: nobody's numbers change
            model = build_model(self.config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(self.weights[name]))
                self.weights[name] = parameter.detach().numpy()  # the same memory from here on
        return model.to(self.device).eval()


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
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
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
        draft.mkdir(parents=True, exist_ok=True)
        digests = {
            WEIGHTS: _write_tensors(draft / WEIGHTS, weights, metadata),
            STATE: _write_tensors(draft / STATE, training_tensors, training_metadata),
        }
        manifest = {"step": step, "sha256": digests}
        _write(draft / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        if folder.exists():  # left by a crash before anything pointed to it
            shutil.rmtree(folder)
        os.replace(draft, folder)
        _sync(folder.parent)
        for pointer in ("last", "best") if best else ("last",):
            _write(out_dir / f".{pointer}.draft", f"{folder.name}\n".encode())
            os.replace(out_dir / f".{pointer}.draft", out_dir / pointer)
        _sync(out_dir)
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


def check_weights(found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raise CheckpointError where tensors or arrays lack one of these names and shapes, or have others."""
    if different := sorted(found.keys() ^ expected.keys()):
        raise CheckpointError(f"{file} does not fit its own configuration: {different[0]} is only in one of them")
    for name, shape in expected.items():
        if (other := tuple(found[name].shape)) != shape:
            raise CheckpointError(f"{file} does not fit its own configuration: {name} is {other}, expected {shape}")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and metadata of a safetensors file of ours, checked against any manifest beside it."""
    return _read(file, "pt")


def read_arrays(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the same as float32 arrays, without PyTorch."""
    arrays, metadata = _read(file, "np")
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}, metadata


def _read(file: Path, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give a run directory or a model.safetensors")
    try:
        with safetensors.safe_open(file, framework=framework) as opened:
            metadata = json.loads((opened.metadata() or {})["quill"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except KeyError as error:
        raise CheckpointError(f"{file} was not written by Quill: its header has no 'quill' entry") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({error}): use another checkpoint of the run"
        ) from error
    expected = read_manifest(file.parent).get(file.name)
    if expected is not None and sha256_of(file) != expected:
        raise CheckpointError(f"{file} was altered since it was written (another SHA-256 than in its manifest)")
    return tensors, metadata


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 that each file of a checkpoint folder should have; empty where there is no manifest."""
    if not (folder / MANIFEST).is_file():
        return {}
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: use another checkpoint of the run") from error


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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


def _write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Write tensors straight from where they lie, and return the file's SHA-256."""
    import safetensors.torch

    header = {"format": "pt", "quill": json.dumps(metadata)}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, header)
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    return sha256_of(file)


def _write(file: Path, data: bytes) -> None:
    """Write, and force to disk before anything is renamed."""
    with open(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    """Force renames in this folder to disk; Windows does so by itself and cannot open folders."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _pointed_to(out_dir: Path, pointer: str) -> str:
    try:
        return (out_dir / pointer).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _delete_all_but(out_dir: Path, names: set[str]) -> None:
    for folder in (out_dir / "checkpoints").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)
