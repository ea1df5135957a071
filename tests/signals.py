"""Signals as a program receives them by default, also where the tests were started with some of them ignored."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from quill.process import SIGNALS


@contextmanager
def default_signals() -> Iterator[None]:
    """Handle in this block the signals that this process ignores as by default.

    A shell starts a program in the background with SIGINT ignored, and nohup one with SIGHUP ignored. The program
    rightly keeps ignoring them, and so do the processes that it starts: a test that sends one would wait for ever.
    """
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
