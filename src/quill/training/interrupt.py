"""Ctrl-C that loses nothing: a signal asks the loop to stop after the step it is in."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


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
