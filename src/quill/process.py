"""Settings of the whole process: waiting threads, locks after a fork, the memory allocator, and signals.

Python runs a signal handler in the main thread, between two of its instructions. During a long call into PyTorch that
can take minutes. The wakeup descriptor (signal.set_wakeup_fd) is written at once, and PyTorch releases the GIL during
its calls, so a thread that reads this descriptor can react at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, a request to end the process, and a closed terminal."""

GRACE = 1.0
"""Seconds that a command has to end by itself after a signal."""

lines_said = 0
"""Number of lines that `say` has written to a terminal. A live display begins a new frame below them."""

received: list[int] = []
"""Signals that stopped training in this process, oldest first. The exit code is that of the first."""


def spin_briefly() -> None:
    """Make PyTorch's idle threads sleep after a short spin. Call it before PyTorch is imported.

    Between two operations the threads of GNU's OpenMP spin, by default for some milliseconds. If another program needs
    one of their cores, each operation then waits for a time slice of the scheduler: training was 20 times slower next
    to two busy programs. A short spin covers the usual gap between operations. Variables that the user has set are
    kept: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html. Called by commands,
    `quill.run` and `quill.load`, never on import.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, for the whole process; return whether it did (other systems do not need it).

    A training step frees and allocates the same large blocks again and again. By default glibc returns them to the
    system each time, and getting them back costs a page fault every 4096 bytes. Called by commands, never on import.
    See mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    libc, trim_threshold, mmap_threshold = ctypes.CDLL("libc.so.6"), -1, -3
    kept = libc.mallopt(mmap_threshold, 2**30) or libc.mallopt(
        mmap_threshold, 2**25
    )  # old versions accept at most 32 MiB
    return bool(kept and libc.mallopt(trim_threshold, 2**30))


def lock_freed_by_fork() -> threading.RLock:
    """Return a reentrant lock that is free in a forked child, unless the thread that forked holds it.

    A child has none of its parent's other threads, so what they hold would stay locked for ever.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def _free_locks() -> None:
    for lock in _locks:
        if not lock._is_owned():
            lock._at_fork_reinit()  # as the locks of the standard library


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt, it is not caught by `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def describe_signal(number: int) -> str:
    """Return what a signal means for a command, in a few words."""
    words: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    return words.get(number, "the terminal was closed")


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """End this program on a signal: by an exception in the main thread, or at once if that takes too long.

    The exception is KeyboardInterrupt for Ctrl-C, else Terminated. After GRACE seconds, or on a second signal, the
    process exits with code 128 + number.
    """
    seen: list[int] = []

    def on_signal(number: int) -> float | None:
        if seen:
            leave(number)
        seen.append(number)
        return GRACE

    with _handling(_raise), _watching(on_signal):
        yield


@contextlib.contextmanager
def catch_interrupts(announce: Callable[[str], object] | None = None) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the first signal, or 0, so that work can be saved before the end.

    The first signal is announced at once: on standard error, or by `announce(text)`, called in a thread of its own. On
    a second one (except SIGHUP, which a closing terminal sends twice) a Quill command ends at once, and a Python
    program that imports Quill gets a KeyboardInterrupt. Only the main thread receives signals: in other threads, such
    as a notebook's worker, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    is_command = signal.getsignal(signal.SIGTERM) is _raise
    handled: list[int] = []  # by the main thread
    watched: list[int] = []  # by the watching thread, possibly earlier

    def handle(number: int, frame: FrameType | None) -> None:
        if handled and number != getattr(signal, "SIGHUP", None) and not is_command:
            raise KeyboardInterrupt
        handled.append(number)

    def on_signal(number: int) -> None:
        if not watched:
            watched.append(number)
            (announce or say)("stopping after this step; press Ctrl-C again to leave at once")
        elif is_command and number != signal.SIGHUP:
            leave(number)

    with _handling(handle), _watching(on_signal):
        try:
            yield lambda: (watched or handled or [0])[0]
        finally:
            received.extend(watched or handled[:1])


def say(text: str) -> None:
    """Write a line to standard error now, from any thread; a closed standard error is ignored."""
    global lines_said
    start = "\n" if _is_terminal(2) else ""  # below the ^C that the terminal shows
    lines_said += bool(start)
    with contextlib.suppress(OSError):
        os.write(2, f"{start}quill: {text}\n".encode())


def leave(number: int) -> None:
    """End the process now, without saving: exit code 128 + number, a message on standard error, the cursor visible."""
    for descriptor in (1, 2):
        if _is_terminal(descriptor):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\x1b[?25h\x1b[0m")
    say(describe_signal(number))
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise the exception for a signal, in a program that has nothing to save."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Install a handler for SIGNALS for the duration of a block, except for ignored ones (`nohup`)."""
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def _watching(on_signal: Callable[[int], float | None]) -> Iterator[None]:
    """Call on_signal(number) at once for each of SIGNALS, in a thread of its own.

    It may return a number of seconds, after which the process exits unless the block has ended. Windows has no such
    descriptors: there on_signal is never called.
    """
    if sys.platform == "win32":
        yield
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(readable, on_signal), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writable)
        thread.join()
        os.close(readable)


def _watch(readable: int, on_signal: Callable[[int], float | None]) -> None:
    import select

    seconds, last = None, 0
    while True:
        ready, _, _ = select.select([readable], [], [], seconds)
        if not ready:
            leave(last)
        numbers = os.read(readable, 64)
        if not numbers:
            return
        for last in (number for number in numbers if number in SIGNALS):
            seconds = on_signal(last)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
