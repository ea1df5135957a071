"""Lines at the end of a terminal that are rewritten in place, also after the terminal was resized."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from quill import process

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
ERASE_LINE, UP_AND_ERASE = "\r\x1b[2K", "\x1b[1A\x1b[2K"


class LiveRegion:
    """The last lines of a terminal. Each frame replaces the one before, in one write."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []  # columns of the lines that are shown now
        self._lines_said = process.lines_said

    def draw(self, lines: Sequence[Text]) -> None:
        """Replace the lines that are shown with these, each shorter than the terminal is wide."""
        frame = "\n".join(map(self._encode, lines))
        self._write((HIDE_CURSOR if not self._widths else "") + self._erasure() + frame)
        self._widths = [line.cell_len for line in lines]

    def print_above(self, *lines: Text) -> None:
        """Erase what is shown and print lines that stay; the next frame comes below them."""
        text = "".join(self._encode(line) + "\n" for line in lines)
        self._write(self._erasure() + text + (SHOW_CURSOR if self._widths else ""))
        self._widths = []

    def finish(self) -> None:
        """Leave the last frame where it is, and the cursor on the line below."""
        if self._widths:
            self._write("\n" + SHOW_CURSOR)
            self._widths = []

    def _erasure(self) -> str:
        """Return the control characters that erase the lines shown now.

        If the terminal became narrower, lines were wrapped and take more rows.
        """
        said, self._lines_said = self._lines_said, process.lines_said
        if not self._widths or said != process.lines_said:  # a message about a signal was printed below: keep both
            return ""
        columns = max(1, self._console.width)
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        return ERASE_LINE + UP_AND_ERASE * (rows - 1)

    def _encode(self, line: Text) -> str:
        """Return a line with its colors as escape sequences, if this terminal and NO_COLOR allow colors."""
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, overflow="ignore", crop=False)
        return captured.get()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone: the run continues without it
            self._console.file.write(text)
            self._console.file.flush()
