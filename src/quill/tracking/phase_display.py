"""Show the progress of a long phase, such as reading and encoding a text. Short phases show nothing.

A terminal shows one line that is rewritten; any other stream gets a line every two seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

SECONDS_BETWEEN_LINES = 2.0
SECONDS_BETWEEN_FRAMES, SECONDS_BEFORE_FIRST_FRAME = 0.1, 0.5
BAR = 24  # columns


def moves_cursor(stream: TextIO) -> bool:
    """Return whether the stream is a terminal in which a line can be rewritten; a notebook's or a CI's is not."""
    elsewhere = any(os.environ.get(name) for name in ("CI", "JPY_PARENT_PID")) or os.environ.get("TERM") == "dumb"
    return not elsewhere and stream.isatty()


class PhaseDisplay:
    """Called as display(what, share) during the work. As a context manager it erases its line at the end."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        between_lines: float | None = None,
    ) -> None:
        self._stream, self._clock = stream if stream is not None else sys.stderr, clock
        self._live = moves_cursor(self._stream)
        self._between_lines = SECONDS_BETWEEN_LINES if between_lines is None else between_lines
        self._next = clock() + (SECONDS_BEFORE_FIRST_FRAME if self._live else self._between_lines)
        self._width = 0  # columns of the line that is shown now

    def __enter__(self) -> PhaseDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def __call__(self, what: str, share: float) -> None:
        """Show the current phase and its completed share, unless something was shown a moment ago."""
        now = self._clock()
        if now < self._next:
            return
        what = "".join(character if character.isprintable() else "?" for character in what)
        if not self._live:
            self._next = now + self._between_lines
            self._write(f"quill: {what}, {share:.0%}\n")
            return
        self._next = now + SECONDS_BETWEEN_FRAMES
        from rich.cells import set_cell_size

        done = round(BAR * min(1.0, max(0.0, share)))
        width = max(1, shutil.get_terminal_size().columns - 1)
        self._write("\r" + set_cell_size(f"{'━' * done}{'─' * (BAR - done)} {share:4.0%}  {what}", width))
        self._width = width

    def clear(self) -> None:
        """Erase the line in a terminal, so that what is printed next begins at its start."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # standard error has no reader: the work continues
            self._stream.write(text)
            self._stream.flush()
