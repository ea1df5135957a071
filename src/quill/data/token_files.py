"""The files of a prepared corpus: `train.bin`, `val.bin` and `dataset.json`, written whole or not at all.

Tokens are little-endian unsigned integers. `dataset.json` has the SHA-256 of each token file and a checksum of its own,
so that any altered byte in the folder is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quill.data.reading.formats import OnProgress
from quill.errors import CorpusError
from quill.files import draft_of, remove_drafts, sync_folder, write_atomically
from quill.tokenizers.base import Tokenizer

FORMAT = 2  # increased whenever the same text gives different files

_DESCRIPTION = "dataset.json"
_SLICE_CHARACTERS = 1 << 22
_SYNC_BYTES = 1 << 26  # between two calls of fsync, so that no call takes seconds
_WAIT_SECONDS = 0.5
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_description(folder: Path) -> dict[str, Any]:
    """Return the contents of `dataset.json`, which `write_tokens` wrote, after its checksum was verified.

    CorpusError if it is missing, damaged or of another format.
    """
    try:
        about = json.loads((folder / _DESCRIPTION).read_text("utf-8"))
        if about["format"] != FORMAT:
            raise CorpusError(f"{folder} has format {about['format']!r}, this Quill reads {FORMAT}: prepare it again")
        if about.pop("checksum") != _checksum(about):
            raise ValueError(f"{_DESCRIPTION} was altered: its checksum is another")
    except FileNotFoundError as error:
        raise CorpusError(f"{folder} is not a prepared dataset: it has no {_DESCRIPTION}; run quill prepare") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, error) from error
    return about


def map_tokens(
    folder: Path, split: str, about: dict[str, Any], dtype: np.dtype, verify: bool, on_progress: OnProgress
) -> np.memmap:
    """Return the tokens of a split as a read-only memory map.

    CorpusError unless their number and, with `verify`, the SHA-256 of the file are those in `about`.
    """
    path, stored = folder / f"{split}.bin", dtype.newbyteorder("<")
    expected = about[split]["tokens"] * stored.itemsize
    try:
        if (size := path.stat().st_size) != expected:
            raise ValueError(f"{path.name} has {size:,} bytes instead of {expected:,}")
        if verify and _sha256_of(path, expected, on_progress) != about[split]["sha256"]:
            raise ValueError(f"{path.name} was altered: its SHA-256 is another")
        return np.memmap(path, dtype=stored, mode="r")
    except FileNotFoundError as error:
        raise CorpusError(f"{folder} is not a prepared dataset: it has no {path.name}; run quill prepare") from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def _sha256_of(path: Path, size: int, on_progress: OnProgress) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            done += len(piece)
            on_progress(f"checking {path.name}", min(1.0, done / size))
    return digest.hexdigest()


def write_tokens(
    folder: Path,
    facts: dict[str, Any],
    text: str,
    tokenizer: Tokenizer,
    *,
    is_done: Callable[[], bool],
    on_progress: OnProgress,
) -> None:
    """Write the folder of a text's tokens; the first 90 % of its characters are for training, the rest for validation.

    `facts` go into the description. `is_done` is called before the new folder replaces an old one, and after writing
    has failed: another process may have prepared the same text meanwhile. CorpusError if the files cannot be written.
    """
    cut = len(text) * 9 // 10
    draft = draft_of(folder)

    def report(split_start: int, characters: int) -> None:
        on_progress("encoding", min(1.0, (split_start + characters) / len(text)))

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _protect_drafts(folder.parent):
            draft.mkdir()
            about = {
                "format": FORMAT,
                **facts,
                "tokenizer": tokenizer.to_json(),
                "dtype": tokenizer.dtype.name,
                "train": _write_split(draft / "train.bin", text, 0, cut, tokenizer, report),
                "val": _write_split(draft / "val.bin", text, cut, len(text), tokenizer, report),
            }
            _write_description(draft, about)
            if not is_done():
                _replace_folder(draft, folder)
    except OSError as error:
        if not is_done():
            raise CorpusError(why_not_written(error, folder)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # only succeeds if it is empty


def publish_tokens(draft: Path, folder: Path, about: dict[str, Any], *, is_done: Callable[[], bool]) -> None:
    """Move `train.bin` and `val.bin` out of a draft to their final folder, with their description.

    `is_done` is that of `write_tokens`. Errors are the system's OSError.
    """
    new = draft_of(folder)
    with _protect_drafts(folder.parent):
        new.mkdir()
        try:
            for name in ("train.bin", "val.bin"):
                os.replace(draft / name, new / name)
            _write_description(new, {"format": FORMAT, **about})
            if not is_done():
                _replace_folder(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def remove_dead_drafts(folder: Path) -> None:
    """Delete the drafts that killed processes left in this folder, unless a running process is preparing here."""
    with contextlib.suppress(OSError):
        if any(folder.glob(".*.draft")):
            with _protect_drafts(folder, remove=True):
                pass


@contextlib.contextmanager
def _protect_drafts(folder: Path, *, remove: bool = False) -> Iterator[None]:
    """Hold a shared lock on a folder for the duration of a block, so that no other process removes drafts there.

    With `remove` the lock is exclusive, and the drafts are removed if it was free. The operating system releases the
    lock when the process ends. On systems without such locks nothing is removed.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # BlockingIOError: another process is preparing; or the disk has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if remove else fcntl.LOCK_SH)
            if remove:
                remove_drafts(folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path, on_progress: OnProgress) -> Iterator[None]:
    """Create a folder, and wait until no other process works in it. A lock is released when its process ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress("waiting for another process that prepares this text", 0.0)
                time.sleep(_WAIT_SECONDS)
                continue
            except OSError:  # this disk has no locks
                pass
            same = False
            with contextlib.suppress(
                FileNotFoundError
            ):  # the other process removed the folder, and perhaps made another
                same = os.path.samestat(os.fstat(descriptor), folder.stat())
            if same:
                yield
                return
        finally:
            os.close(descriptor)


def _write_split(
    path: Path, text: str, start: int, end: int, tokenizer: Tokenizer, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Encode text[start:end] into a file, slice by slice to limit memory, and return its description."""
    stored = tokenizer.dtype.newbyteorder("<")
    count, unsynced, digest = 0, 0, hashlib.sha256()
    with open(path, "xb") as file:
        for first in range(start, end, _SLICE_CHARACTERS):
            last = min(first + _SLICE_CHARACTERS, end)
            raw = tokenizer.encode(text[first:last], compact=True).astype(stored, copy=False).tobytes()
            file.write(raw)
            digest.update(raw)
            count += len(raw) // stored.itemsize
            unsynced += len(raw)
            if unsynced >= _SYNC_BYTES or last == end:  # some file systems report a full disk only here
                file.flush()
                os.fsync(file.fileno())
                unsynced = 0
            report(first, last - first)
    return {"tokens": count, "characters": end - start, "sha256": digest.hexdigest()}


def _write_description(folder: Path, about: dict[str, Any]) -> None:
    write_atomically(folder / _DESCRIPTION, json.dumps({**about, "checksum": _checksum(about)}, indent=2) + "\n")


def _checksum(about: dict[str, Any]) -> str:
    """Return the SHA-256 of a description without its checksum; order and spaces of the JSON do not matter."""
    plain = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to its final name. The old folder is restored if that fails."""
    old = draft_of(folder)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, old)
    try:
        os.replace(new, folder)
        sync_folder(folder.parent)
    except OSError:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _damaged(folder: Path, error: Exception) -> CorpusError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    return CorpusError(f"{folder} is damaged ({reason}): delete the folder and prepare it again")


def why_not_written(error: OSError, folder: Path) -> str:
    """Return the message for an error of the disk."""
    if error.errno in _NO_SPACE:
        return f"no space left for the tokens in {folder}: free some, or choose a data_dir on another disk"
    return f"the tokens cannot be written to {folder}: {error.strerror}: choose another data_dir"
