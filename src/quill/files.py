"""Files that are written whole or not at all, and the folder for cached files.

A file or folder is written under a draft name in the same folder, flushed to disk and renamed. After a crash the old or
the new version exists, whole. Draft names are hidden and end in `.draft`, so that `remove_drafts` recognises them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

import platformdirs

_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.draft", re.DOTALL)


def cache_folder() -> Path:
    """Return the folder for downloads and compiled code: QUILL_CACHE_DIR, or the user's cache folder."""
    return expand_home(os.environ.get("QUILL_CACHE_DIR") or platformdirs.user_cache_dir("quill", appauthor=False))


def draft_of(path: Path) -> Path:
    """Return a new draft name in the folder of `path`, under which it is written or deleted."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def is_draft(path: Path) -> bool:
    """Return whether a file or folder, or a folder that contains it, has a name made by `draft_of`."""
    return any(_DRAFT.fullmatch(part) for part in path.parts)


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file whole or not at all, durably, and create missing folders.

    Errors are the system's OSError, which names this file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with open(draft, "xb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # fsync and write name no file, the others the draft
        raise
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def sync_folder(folder: Path) -> None:
    """Flush renames in this folder to disk. Windows does that by itself, and cannot open folders."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Delete a folder; it is renamed to a draft first, so that `remove_drafts` finishes an interrupted deletion."""
    draft = draft_of(folder)
    with contextlib.suppress(OSError):
        os.replace(folder, draft)
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Delete the drafts that a crash left in this folder. No other process may write there at the same time."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~name` replaced by that home folder, unless such a file exists."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))
