"""Find the text of a run again: at its path, next to the run's folder, or as prepared tokens of the same text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quill.checkpoints.format import WEIGHTS
from quill.checkpoints.run_folder import find_checkpoint
from quill.checkpoints.tensor_file import TensorFile
from quill.errors import CheckpointError
from quill.files import expand_home
from quill.tokenizers.base import Tokenizer
from quill.validation import show

if TYPE_CHECKING:
    from quill.checkpoints.format import Checkpoint
    from quill.data.mixed_dataset import AnyDataset


def text_sha256_of(out_dir: Path) -> str | None:
    """Return the SHA-256 of the text that a run was trained on; None for a run of an earlier version."""
    with TensorFile(find_checkpoint(out_dir, "last") / WEIGHTS) as file:
        digest = file.metadata.get("text_sha256")
    return digest if isinstance(digest, str) else None


def open_run_text(
    out_dir: str | Path,
    dataset: str | list[str],
    tokenizer: str | Tokenizer,
    data_dir: str | Path,
    sha256: str | None,
    on_progress: Callable[[str, float], None],
) -> AnyDataset:
    """Return the dataset of the text that a run's config.yaml names; CorpusNotFoundError if it cannot be found.

    Relative paths are resolved from the current folder, and then from the parent of out_dir, where such a run was
    usually started. So a run can be moved with its text, and resumed from any folder. If neither has the text with this
    `sha256`, another text that was found is returned, and the caller compares. If there is none, prepared tokens of the
    same text are used.
    """
    from quill.data.corpus import CorpusNotFoundError
    from quill.data.mixed_dataset import prepare_any
    from quill.data.mixture import Mixture, find_mixture
    from quill.data.sources import NAMES, paths_of

    def prepare(paths: str | list[str] | Mixture, folder: str | Path) -> AnyDataset:
        return prepare_any(paths, tokenizer=tokenizer, data_dir=folder, sha256=sha256, on_progress=on_progress)

    found, missing = None, None
    try:
        found = prepare(dataset, data_dir)
    except CorpusNotFoundError as error:
        missing = error
    if found is not None and sha256 in (None, found.sha256):
        return found
    beside = expand_home(out_dir).absolute().parent

    def move(path: str) -> str:
        return path if path in NAMES else str(beside / expand_home(path))

    mixture = find_mixture(dataset)
    moved = mixture.moved(move) if mixture else [*map(move, paths_of(dataset))]
    try:
        other = prepare(moved, beside / expand_home(data_dir))
    except CorpusNotFoundError:
        other = None
    if other is not None and (found is None or other.sha256 == sha256):
        return other
    if found is not None:
        return found
    assert missing is not None
    raise missing


def text_of_run(
    out_dir: Path, checkpoint: Checkpoint, data_dir: str | None, on_progress: Callable[[str, float], None]
) -> AnyDataset:
    """Return the dataset that a run was trained on; CheckpointError if it is unknown, or its text has changed."""
    from quill.runs.resume import stored_settings

    settings = stored_settings(out_dir)
    if settings is None:
        where = "has lost its config.yaml" if (out_dir / "checkpoints").is_dir() else "is not a run directory"
        raise CheckpointError(f"{out_dir} {where}, so its text is not known: give the text as dataset=…")
    name, kind = settings["dataset"], settings["tokenizer"]
    folder = settings["data_dir"] if data_dir is None else data_dir
    dataset = open_run_text(out_dir, name, kind, folder, checkpoint.text_sha256, on_progress)
    same = dataset.tokenizer.to_json() == checkpoint.tokenizer.to_json()
    if checkpoint.text_sha256 is not None and dataset.sha256 != checkpoint.text_sha256:
        raise changed(name, out_dir)
    if not same and checkpoint.text_sha256 is None:
        raise changed(name, out_dir)
    if same:
        return dataset
    return open_run_text(out_dir, name, checkpoint.tokenizer, folder, checkpoint.text_sha256, on_progress)


def changed(name: object, out_dir: Path) -> CheckpointError:
    """Return the error for a text that is not the one that a run was trained on."""
    title = name if isinstance(name, str) else show(name)
    return CheckpointError(
        f"{title} has changed since {out_dir} was trained: put the old text back, or measure on the new one "
        f"with dataset={title}"
    )
