"""Files that are written whole or not at all, and the folder for cached files.

A file is written as a draft beside its place, forced to disk and renamed. A crash leaves the old file or the new one.
Drafts are hidden and end in `.draft`, so that `remove_drafts` recognises what a crash left behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Return the folder for downloads and compiled code: QUILL_CACHE_DIR, or the user's cache folder."""
    return Path(os.environ.get("QUILL_CACHE_DIR") or platformdirs.user_cache_dir("quill", appauthor=False))


def draft_of(path: Path) -> Path:
    """Return a new hidden name beside `path`, under which it can be prepared."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


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


def sync_file(path: Path) -> None:
    """Force the contents of a file to disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force renames in this folder to disk; Windows does so by itself and cannot open folders."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_drafts(folder: Path) -> None:
    """Delete the drafts that a crash left in this folder."""
    for draft in folder.glob(".*.draft"):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                draft.unlink()


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~name` as that home folder, unless a file of this very name exists."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))
