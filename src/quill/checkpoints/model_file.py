"""A model on its own, outside a run: one model.safetensors, or a folder with it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from quill.checkpoints.format import describe_model, weights_of
from quill.checkpoints.manifest import MANIFEST, WEIGHTS
from quill.checkpoints.tensor_file import write_tensor_file
from quill.errors import CheckpointError
from quill.files import draft_of, expand_home, sync_folder
from quill.tokenizers.base import Tokenizer
from quill.validation import require, show

if TYPE_CHECKING:
    from quill.model.build import Model


def save_model(
    path: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer,
    *,
    step: int = 0,
    val_loss: float | None = None,
    text_sha256: str | None = None,
) -> Path:
    """Write the weights with their configuration and tokenizer, whole or not at all, and return the file.

    A path that ends in .safetensors is the file; any other is a folder, and the file in it is model.safetensors. An
    existing file is replaced. CheckpointError if the path belongs to a run, or weights are not finite.
    """
    import torch

    path = expand_home(path)
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    for taken, what in ((path / "checkpoints", "holds a run"), (file.parent / MANIFEST, "is a checkpoint of a run")):
        if os.path.lexists(taken):
            raise CheckpointError(f"cannot save to {path}, because {taken.parent} {what}: choose another path")
    weights = weights_of(model)
    if broken := next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None):
        raise CheckpointError(f"cannot save to {path}: {broken} has values that are not finite")
    draft = draft_of(file)
    about = describe_model(model, tokenizer, step=step, val_loss=val_loss, text_sha256=text_sha256)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensor_file(draft, weights, about)
        os.replace(draft, file)
        sync_folder(file.parent)
    except OSError as error:
        raise CheckpointError(f"cannot save {file}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return file


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path, which need not exist; a value of another type is a ConfigError.

    A path that the system cannot look up, such as a long text given as a path, is a CheckpointError.
    """
    valid = isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str) and os.fspath(path) != ""
    require(valid, "path", path, "the path of a run, a checkpoint or a .safetensors file")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{show(str(path))} cannot be the path of a model: {reason}") from None
    return Path(path)
