"""The folder of a run: save and find checkpoints, and clean up after a crash."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.checkpoints.format import Checkpoint, read_checkpoint, write_checkpoint
from quill.checkpoints.index import (
    Index,
    Which,
    folder_of,
    index_file,
    index_of_folders,
    read_index,
    saved,
    whole_checkpoints,
    write_index,
    write_pointers,
)
from quill.checkpoints.manifest import STATE, WEIGHTS, folder_name, manifest_beside, step_of
from quill.errors import CheckpointError, ConfigError, TrainingError, first_line
from quill.files import draft_of, expand_home, remove_drafts, remove_folder, sync_folder
from quill.tokenizers.base import Tokenizer
from quill.units import format_bytes

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
    training_tensors: Mapping[str, Tensor],
    training_metadata: Mapping[str, Any],
    text_sha256: str | None = None,
) -> Path:
    """Write a checkpoint, make it `last` (and `best`), delete those that are neither, and return its folder.

    Values that are not finite are a TrainingError. An error of the system, such as a full disk, is a CheckpointError.
    In both cases the earlier checkpoints are kept.
    """
    out_dir = Path(out_dir)
    folder = out_dir / "checkpoints" / folder_name(step)
    before = read_index(out_dir)
    if before and step in before.steps():
        raise CheckpointError(f"{out_dir} already holds a checkpoint of step {step}: choose another out_dir")
    tensors = {**dict(model.named_parameters()), **training_tensors}
    require_finite(tensors, val_loss, step)
    draft = draft_of(folder)
    try:
        draft.mkdir(parents=True)
        write_checkpoint(
            draft, model, tokenizer, step=step, val_loss=val_loss, text_sha256=text_sha256,
            training_tensors=training_tensors, training_metadata=training_metadata,
        )  # fmt: skip
        if folder.exists():  # left by a crash before the index named it
            remove_folder(folder)
        os.replace(draft, folder)
        sync_folder(folder.parent)
        entry = saved(folder)
        write_index(out_dir, Index(entry, entry if best else before.best if before else None))
    except OSError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise CheckpointError(_why_not_saved(folder, error, size, out_dir, before)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _delete_others(out_dir, {step} | Index(entry, before.best if before and not best else None).steps())
    return folder


def require_finite(tensors: Mapping[str, Tensor], val_loss: float | None, step: int) -> None:
    """Raise TrainingError if a weight, an optimizer moment or the validation loss is NaN or infinite."""
    import torch

    def is_finite(tensor: Tensor) -> bool:
        if not tensor.is_floating_point() or not tensor.numel():
            return True
        return bool(
            torch.stack(torch.aminmax(tensor.detach())).isfinite().all()
        )  # aminmax returns NaN if any value is NaN

    broken = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    if broken is None and val_loss is not None and not abs(val_loss) < float("inf"):
        broken = "the validation loss"
    if broken is not None:
        raise TrainingError(
            f"training diverged at step {step}: {broken} is no longer finite, so this step is not saved; earlier "
            f"checkpoints are kept; try a lower learning_rate, more warmup_iters or dtype=float32"
        )


def _why_not_saved(folder: Path, error: OSError, size: int, out_dir: Path, before: Index | None) -> str:
    try:
        free = shutil.disk_usage(out_dir).free
        sizes = f"; a checkpoint takes {format_bytes(size)} and the disk has {format_bytes(free)} free"
    except OSError:
        sizes = ""
    reason = error.strerror or first_line(error)
    if before is None:
        return f"cannot save {folder}: {reason}{sizes}; nothing has been saved yet: make room and start again"
    return (
        f"cannot save {folder}: {reason}{sizes}; the checkpoints before it are untouched: "
        f"make room and resume with quill train --resume=True --out_dir={out_dir}"
    )


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu", checkpoint: Which = "best") -> Checkpoint:
    """Return the model in a run directory, a checkpoint folder or a model.safetensors file.

    `checkpoint` selects one of a run's checkpoints. If it cannot be read, the other one is not used instead. Missing,
    truncated or altered files, and files that Quill did not write, are a CheckpointError.
    """
    path = expand_home(path)
    if not (path / "checkpoints").is_dir():
        file = path / WEIGHTS if path.is_dir() else path
        if not os.path.lexists(file):
            what = "holds neither a run nor a checkpoint" if path.is_dir() else "does not exist"
            raise CheckpointError(f"{path} {what}{suggest_run()}: give a run directory or a model.safetensors")
        return read_checkpoint(file, device)
    while True:
        before = read_index(path)
        try:
            return read_checkpoint(find_checkpoint(path, checkpoint) / WEIGHTS, device)
        except CheckpointError:
            if read_index(path) == before:  # otherwise training has replaced it meanwhile
                raise


def find_checkpoint(out_dir: str | Path, checkpoint: Which = "best") -> Path:
    """Return the folder of a run's best (or last) checkpoint; the last one if there was no evaluation yet."""
    out_dir = Path(out_dir)
    index = read_index(out_dir)
    if index is None:
        raise CheckpointError(
            f"{out_dir} holds no checkpoint{suggest_run()}: train one with quill train --minutes=5 --out_dir={out_dir}"
        )
    return folder_of(out_dir, (index.best or index.last) if checkpoint == "best" else index.last)


def newest_run(folder: str | Path = ".") -> Path:
    """Return the run directory in this folder (or the folder itself) whose last checkpoint is the newest."""
    try:
        runs = runs_in(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}): name the folder of a run") from error
    if not runs:
        raise CheckpointError(
            "there is no trained model in this folder: name the folder of a run, train one with "
            "quill train --minutes=5, or name tiny, the small model that comes with Quill"
        )
    return runs[0]


def runs_in(folder: str | Path = ".") -> list[Path]:
    """Return the run directories in this folder, and the folder itself if it is one, the newest first."""
    folder = Path(folder)
    runs = {run: saved_at for run in (folder, *folder.iterdir()) if (saved_at := _saved_at(run)) is not None}
    return sorted(runs, key=runs.__getitem__, reverse=True)


def suggest_run(folder: str | Path = ".") -> str:
    """Return " (there is a run in out-mine)", which names the newest run here, or an empty string."""
    with contextlib.suppress(OSError):
        if runs := runs_in(folder):
            return f" (there is a run in {runs[0]})"
    return ""


def _saved_at(run: Path) -> int | None:
    """Return the time of a run's last save, in nanoseconds; None for a folder that is not a run or cannot be read."""
    for file in (run / "last", index_file(run)):
        if os.path.isfile(file) and os.path.isdir(run / "checkpoints"):
            return file.stat().st_mtime_ns
    return None


def holds_run(out_dir: Path) -> bool:
    """Return whether a folder holds a run: an index, or at least one complete checkpoint."""
    return any(os.path.lexists(f) for f in (out_dir / "last", index_file(out_dir))) or bool(whole_checkpoints(out_dir))


def clean_run_folder(out_dir: str | Path) -> None:
    """Finish what a crash interrupted: write the index if it is missing, delete drafts and checkpoints not in it.

    Call it with the run's lock held, before a run is resumed or found finished. A damaged index is a CheckpointError.
    """
    out_dir = Path(out_dir)
    for folder in (out_dir, out_dir / "checkpoints"):
        remove_drafts(folder)
    if not whole_checkpoints(out_dir):
        return
    if os.path.lexists(index_file(out_dir)):
        index = read_index(out_dir)
        assert index is not None
        write_pointers(out_dir, index)
    else:
        index = index_of_folders(out_dir)
        write_index(out_dir, index)
    _delete_others(out_dir, index.steps())


def return_to_best(out_dir: str | Path) -> Path:
    """Make the best checkpoint the last one too, delete later ones, and return its folder.

    The run is then resumed from its best checkpoint.
    """
    out_dir = Path(out_dir)
    folder = find_checkpoint(out_dir, "best")
    manifest_beside(folder / STATE)
    entry = saved(folder)
    write_index(out_dir, Index(entry, entry))
    _delete_others(out_dir, {entry.step})
    return folder


def make_last_best(out_dir: str | Path) -> None:
    """Make the last checkpoint the best one too, after an evaluation that came after its save."""
    out_dir = Path(out_dir)
    index = read_index(out_dir)
    assert index is not None
    write_index(out_dir, Index(index.last, index.last))
    _delete_others(out_dir, {index.last.step})


def _delete_others(out_dir: Path, steps: set[int]) -> None:
    """Delete the checkpoint folders of other steps, and drafts. What cannot be deleted is left for the next call."""
    for folder in (out_dir / "checkpoints").iterdir():
        if step_of(folder) not in (None, *steps):
            remove_folder(folder)
    remove_drafts(out_dir / "checkpoints")


def require_folder(out_dir: Path) -> None:
    """Raise ConfigError if out_dir cannot be a folder, because it or a folder above it is a file."""
    for path in (out_dir, *out_dir.parents):
        if path.exists():
            if not path.is_dir():
                raise ConfigError(
                    f"out_dir={str(out_dir)!r} cannot be a folder: {path} is a file; choose another out_dir"
                )
            return


def remove_run(out_dir: Path) -> None:
    """Delete the files of a run from its folder, and nothing else."""
    names = ("last", "best", "config.yaml", "metrics.jsonl", "samples.txt", "loss.png", "film.safetensors")
    for file in (index_file(out_dir), *(out_dir / name for name in names)):
        file.unlink(missing_ok=True)
    for folder in (
        *(f for f in (out_dir / "checkpoints").glob("step-*") if step_of(f) is not None),
        out_dir / "tensorboard",
    ):
        remove_folder(folder)
    for folder in (out_dir, out_dir / "checkpoints"):
        remove_drafts(folder)
