"""Files that are written whole or not at all, and the folder for cached files.

A file or folder is written under a draft name beside its final one, forced to disk and renamed. After a crash there is
the old one or the new one. Drafts are hidden and end in `.draft`, so that `remove_drafts` recognises what a crash left.
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
    return Path(os.environ.get("QUILL_CACHE_DIR") or platformdirs.user_cache_dir("quill", appauthor=False))


def draft_of(path: Path) -> Path:
    """Return a new hidden name beside `path`, to write or delete it under."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def is_draft(path: Path) -> bool:
    """Say whether a file or folder, or a folder that it lies in, has a name made by `draft_of`."""
    return any(_DRAFT.fullmatch(part) for part in path.parts)


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file whole or not at all, durably; missing parent folders are made. Errors are the system's OSError."""
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
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def sync_folder(folder: Path) -> None:
    """Force renames in this folder to disk; Windows does so by itself and cannot open folders."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Delete a folder; what a crash or a missing permission leaves of it has the name of a draft."""
    draft = draft_of(folder)
    with contextlib.suppress(OSError):
        os.replace(folder, draft)
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Delete the drafts that a crash left in this folder. No other process may be writing there."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~name` as that home folder, unless a file of this very name exists."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))
