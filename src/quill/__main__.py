"""The program `quill`, also as `python -m quill`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command as the program of this process, and return its exit code.

    Signals are handled before the first import: the imports take long enough for somebody to press Ctrl-C.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    from quill.cli.main import main as run
    from quill.process import end_on_signals

    with end_on_signals():
        code = run(argv)
    if code > 128:  # ended by a signal: wait for no threads, and run no exit handlers of libraries
        os._exit(code)
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: nothing has begun that would have to be saved."""
    words = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}
    os.write(2, b"quill: %s\n" % words.get(signal.Signals(number), b"the terminal was closed"))
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
