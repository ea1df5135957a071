"""A lock on the folder of a run, so that two processes never train in the same folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from quill.errors import ConfigError

LOCK = ".lock"
_BEYOND_CONTENT = 1 << 20  # Windows makes locked bytes unreadable for others, and the process id must be readable


@contextlib.contextmanager
def lock_run(out_dir: str | Path) -> Iterator[None]:
    """Lock a run's folder for the duration of a block; create the folder if it is missing.

    The operating system holds the lock, on the file `.lock`, and releases it when the process ends. If another process
    holds it, that is a ConfigError that names the process. On a file system without locks nothing is locked.
    """
    out_dir = Path(out_dir)
    descriptor = _open_locked(out_dir)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file
            os.unlink(out_dir / LOCK)
        os.close(descriptor)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                os.unlink(out_dir / LOCK)


def _open_locked(out_dir: Path) -> int:
    """Return an open, locked descriptor of the lock file."""
    file = out_dir / LOCK
    while True:
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"out_dir={str(out_dir)!r} cannot be used: {error.strerror}") from error
        if not _lock(descriptor):
            holder = os.pread(descriptor, 20, 0) if hasattr(os, "pread") else os.read(descriptor, 20)
            os.close(descriptor)
            name = f"process {int(holder)}" if holder.strip().isdigit() else "another process"
            raise ConfigError(f"{out_dir} is in use: {name} is training there; wait for it, or choose another out_dir")
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # the process that held the lock deleted the file meanwhile


def _lock(descriptor: int) -> bool:
    """Lock an open file, and return whether it was free."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _BEYOND_CONTENT, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def is_locked(out_dir: str | Path) -> bool:
    """Return whether a process trains in this folder. Nothing is created or changed."""
    try:
        descriptor = os.open(Path(out_dir) / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)
