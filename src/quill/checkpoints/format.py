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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from quill.errors import CheckpointError
from quill.files import sync_file
from quill.model.config import ModelConfig
from quill.tokenizers.base import Tokenizer

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


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Write tensors straight from where they lie, and return the file's SHA-256."""
    import safetensors.torch

    header = {"format": "pt", "quill": json.dumps(metadata)}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, header)
    sync_file(file)
    return sha256_of(file)
