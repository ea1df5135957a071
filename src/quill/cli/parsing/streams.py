"""Standard input, output and error as a command uses them: UTF-8, never missing, and with errors that name them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

OUTPUT = "standard output"
"""What an OSError names as its file where standard output cannot be written."""


@contextlib.contextmanager
def standard_streams(*, optional_output: bool = False) -> Iterator[None]:
    """Make the standard streams safe to use for the duration of a block; a closed one becomes the null device.

    An OSError of standard output names it. With `optional_output`, output that cannot be written is dropped, so that a
    run continues when its reader, terminal or disk is gone. Standard error is always optional.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    _fill_closed_descriptors()
    with contextlib.ExitStack() as stack:
        if sys.stdin is None:
            sys.stdin = stack.enter_context(open(os.devnull, encoding="utf-8"))
        _use_utf8(sys.stdin, "surrogateescape")
        sys.stdout = _writable(sys.stdout, sys.__stdout__, optional_output, stack)
        sys.stderr = _writable(sys.stderr, sys.__stderr__, True, stack)
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


class _Output(io.FileIO):
    """An output descriptor. If it is optional, the null device replaces it after the first failure."""

    def __init__(self, descriptor: int, optional: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.optional = optional

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self.optional:
                raise OSError(error.errno, error.strerror, OUTPUT) from error
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            if self.fileno() == 1 and error.errno not in (errno.EPIPE, errno.EIO):  # a closed reader or terminal
                print(f"quill: {OUTPUT}: {error.strerror}; the run continues without it", file=sys.stderr)
            return len(data)


def _writable(stream: TextIO | None, original: TextIO | None, optional: bool, stack: contextlib.ExitStack) -> TextIO:
    if stream is None:
        return stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
    if sys.platform == "win32" or stream is not original or not isinstance(stream, io.TextIOWrapper):
        _use_utf8(stream, "replace")  # a console of Windows, a notebook, a test: they have streams of their own
        return stream
    stream.flush()
    buffer = io.BufferedWriter(_Output(stream.fileno(), optional))
    at_once = stream.line_buffering or stream.write_through
    made = io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", line_buffering=at_once)
    stack.callback(_close, made)
    return made


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _use_utf8(stream: TextIO, errors: str) -> None:
    """Make a stream read or write UTF-8, for any code page of the console."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors=errors)


def _fill_closed_descriptors() -> None:
    """Open the null device where descriptor 0, 1 or 2 is closed: the next file would otherwise get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
