"""One checkpoint on disk: a folder with weights, training state and their checksums, or the weights file alone.

    step-000500/
        model.safetensors         weights, with configuration and tokenizer in its header: enough to generate
        training.safetensors      optimizer state, random-number state, progress: enough to resume
        manifest.json             SHA-256 of both

A safetensors file contains no code and no checksum, so the manifest has the checksums. Weights are read as NumPy
arrays; PyTorch, whose import takes over a second, is imported only when a model is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.checkpoints.manifest import FORMAT, STATE, WEIGHTS, Manifest, manifest_beside, write_manifest
from quill.checkpoints.schema import FINITE, OBJECT, SHA256, STEP, check_record, one_of, optional
from quill.checkpoints.tensor_file import FLOATS, TensorFile, TensorInfo, write_tensor_file
from quill.errors import CheckpointError, QuillError
from quill.model.config import CONFIGS, ModelConfig, architecture_of
from quill.model.shapes import Shapes, weight_shapes
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import tokenizer_from_json
from quill.validation import show

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quill.model.build import Model

NAMES_IN_FORMAT_1 = {"embedding_skip": "reminders"}

MOST_ANGLES = 1 << 26  # in the rotary table of a model that is built only for the shapes of its weights

ABOUT = {
    "format": one_of(1, 2),
    "architecture": one_of(*CONFIGS),
    "model": OBJECT,
    "tokenizer": OBJECT,
    "step": STEP,
    "val_loss": optional(FINITE),
    "text_sha256": optional(SHA256),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model read from disk, with what the file says about it."""

    config: ModelConfig
    weights: dict[str, np.ndarray] = field(repr=False)
    """every weight by its name, float32; on a CPU they share memory with those of `model`"""
    tokenizer: Tokenizer
    step: int
    val_loss: float | None
    metadata: dict[str, Any] = field(repr=False)
    path: Path
    device: torch.device | str
    """where `model` will be"""
    text_sha256: str | None = None
    """SHA-256 of the text that it was trained on; None in checkpoints of format 1"""

    @cached_property
    def model(self) -> Model:
        """The model in evaluation mode, built at the first access."""
        import torch

        from quill.model.build import build_model

        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
            model = build_model(self.config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        check_weights({name: array.shape for name, array in self.weights.items()}, shapes, self.path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(self.weights[name]))
                self.weights[name] = parameter.detach().numpy()  # the same memory from here on
        return model.to(self.device).eval()


def write_checkpoint(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    *,
    step: int,
    val_loss: float | None,
    text_sha256: str | None,
    training_tensors: Mapping[str, Tensor],
    training_metadata: Mapping[str, Any],
) -> None:
    """Write the three files of a checkpoint into an existing empty folder, durably. Errors are the system's OSError."""
    about = describe_model(model, tokenizer, step=step, val_loss=val_loss, text_sha256=text_sha256)
    digests = {
        WEIGHTS: write_tensor_file(folder / WEIGHTS, weights_of(model), about),
        STATE: write_tensor_file(folder / STATE, training_tensors, training_metadata),
    }
    write_manifest(folder, Manifest(step, digests))


def describe_model(
    model: Model, tokenizer: Tokenizer, *, step: int, val_loss: float | None, text_sha256: str | None
) -> dict[str, Any]:
    """Return the JSON object in the header of a weights file: enough to build the model and its tokenizer."""
    return {
        "format": FORMAT,
        "architecture": architecture_of(model.config),
        "model": asdict(model.config),
        "tokenizer": tokenizer.to_json(),
        "step": step,
        "val_loss": val_loss,
        "text_sha256": text_sha256,
    }


def weights_of(model: Model) -> dict[str, Tensor]:
    """Return every weight by its name; a shared weight once, under its first name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def read_checkpoint(file: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the model in a weights file; CheckpointError unless every byte is as written and fits the configuration.

    In a run's folder a manifest is required. A file on its own is checked against its header only.
    """
    with TensorFile(file) as opened:
        manifest = manifest_beside(file)
        about, config, tokenizer = _parse_about(opened.metadata, file)
        if manifest and about["step"] != manifest.step:
            raise CheckpointError(f"{file} is of step {about['step']} and its manifest of step {manifest.step}")
        present_names = {name_in_format(name, about["format"]): name for name in NAMES_IN_FORMAT_1}
        names = {name: present_names.get(name, name) for name in opened.tensors}
        _check_tensors(config, {names[name]: info for name, info in opened.tensors.items()}, file)
        arrays, digest = opened.read()
    _check_digest(file, digest, manifest)
    weights = {names[name]: np.asarray(array, np.float32) for name, array in arrays.items()}
    val_loss, text = about["val_loss"], about["text_sha256"]
    return Checkpoint(config, weights, tokenizer, about["step"], val_loss, about, file.parent, device, text)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a weights or training file, checked against its manifest, if any."""
    import torch

    with TensorFile(file) as opened:
        manifest = manifest_beside(file)
        arrays, digest = opened.read()
    _check_digest(file, digest, manifest)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, opened.metadata


def name_in_format(name: str, format: int) -> str:
    """Return the name that a weight has in checkpoints of a format."""
    return NAMES_IN_FORMAT_1.get(name, name) if format == 1 else name


def _parse_about(metadata: dict[str, Any], file: Path) -> tuple[dict[str, Any], ModelConfig, Tokenizer]:
    """Return the checked metadata of a weights file, and the configuration and tokenizer in it."""
    if metadata.get("format") == 1:
        metadata = {"text_sha256": None} | metadata
    about = check_record(metadata, ABOUT, file)
    kind = CONFIGS[about["architecture"]]
    names = {field.name for field in dataclasses.fields(kind)}
    if different := sorted(names ^ about["model"].keys()):
        raise CheckpointError(f"{file} is damaged: {show(different[0])} of its model is missing or not known")
    try:
        return about, kind(**about["model"]), tokenizer_from_json(about["tokenizer"])
    except QuillError as error:
        raise CheckpointError(f"{file} is damaged: {str(error)[:200]}") from error


def _check_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo], file: Path) -> None:
    """Raise CheckpointError unless a weights file has the weights of this model. Nothing large is built for this."""
    for name, info in tensors.items():
        if info.dtype not in FLOATS or 0 in info.shape:
            raise CheckpointError(f"{file} is damaged: {show(name)} is {info.dtype} of shape {info.shape}, not weights")
    if max(config.n_layer, getattr(config, "ngram", 0)) > len(tensors):
        raise CheckpointError(f"{file} does not fit its own configuration: it has {len(tensors)} tensors only")
    found = {name: info.shape for name, info in tensors.items()}
    expected = weight_shapes(config)
    if found != expected and _is_cheap(config, found):
        expected = _shapes_of_model(config)  # the user's own code may have other weights than weight_shapes() lists
    check_weights(found, expected, file)


def _is_cheap(config: ModelConfig, found: Shapes) -> bool:
    """Return whether building this model on the meta device is cheap.

    A width that no tensor of the file has, or an enormous rotary table, is a damaged or hostile configuration.
    """
    widest = max((size for shape in found.values() for size in shape), default=0)
    return config.n_embd <= widest and config.block_size * config.n_embd // config.n_head <= MOST_ANGLES


def _shapes_of_model(config: ModelConfig) -> Shapes:
    """Return the shape of each weight of the model that `build_model` builds, without memory for the weights."""
    import torch

    from quill.model.build import build_model

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in build_model(config).named_parameters()}


def check_weights(found: Shapes, expected: Shapes, file: Path) -> None:
    """Raise CheckpointError unless both have the same names with the same shapes."""
    unfit = f"{file} does not fit its own configuration"
    if different := sorted(found.keys() ^ expected.keys()):
        raise CheckpointError(f"{unfit}: {show(different[0])} is only in one of them")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{unfit}: {name} is {found[name]}, expected {shape}")


def _check_digest(file: Path, digest: str, manifest: Manifest | None) -> None:
    if manifest and digest != manifest.sha256[file.name]:
        raise CheckpointError(f"{file} was altered since it was written (another SHA-256 than in its manifest)")
