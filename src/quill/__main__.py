"""The program `quill`, also as `python -m quill`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command in this process, which is its own, and return its exit code.

    A signal is answered from the first moment: imports take longer than it takes to press Ctrl-C.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    from quill.cli.main import main as run
    from quill.process import end_on_signals

    with end_on_signals():
        code = run(argv)
    if code > 128:  # a signal has asked for it: do not wait for threads, nor run what libraries leave for the end
        os._exit(code)
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process, as long as nothing has begun."""
    word = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}.get(signal.Signals(number), b"the terminal was closed")
    os.write(2, b"quill: %s\n" % word)
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
