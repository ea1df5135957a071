"""What commands change for the whole process: the memory allocator, and what signals do."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


def keep_freed_memory() -> bool:
    """Make glibc keep memory that was freed, for this whole process; say whether it did (other systems do not need it).

    A training step frees and asks for the same large blocks again and again. By default glibc hands them back to the
    system each time, and to get them again costs a page fault every 4096 bytes. Called by commands, never on import.
    See mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    libc, trim_threshold, mmap_threshold = ctypes.CDLL("libc.so.6"), -1, -3
    kept = libc.mallopt(mmap_threshold, 2**30) or libc.mallopt(mmap_threshold, 2**25)  # old ones take 32 MiB at most
    return bool(kept and libc.mallopt(trim_threshold, 2**30))


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C (or a polite kill) came; a second Ctrl-C interrupts at once.

    Signals reach only the main thread: elsewhere, in a notebook's worker for instance, nothing is caught.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
