"""The errors that a user can cause.

Each message is one line that names the thing, its value, and what to do. The command line prints that line
and exits with code 2; a program that imports Quill catches the type.
"""

from __future__ import annotations

LONGEST_MESSAGE = 800
"""Characters. A longer message loses its middle: what went wrong is at its start, what to do is at its end."""


class QuillError(Exception):
    """An error that the user can correct. Its text is one line: what is wrong, and what to do."""

    reported: bool | None = None
    """in a run of several processes: whether another one has reported it; None before they have met"""

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


class ConfigError(QuillError, ValueError):
    """A setting with an unknown name, a wrong type or an impossible value."""


class CorpusError(QuillError):
    """A text or token file that is missing, empty, damaged, too short, or not text."""


class TokenizerError(QuillError, ValueError):
    """Text that a tokenizer cannot encode, or tokens that it cannot decode."""


class CheckpointError(QuillError):
    """A checkpoint that is missing, truncated, altered, or of another kind."""


class TrainingError(QuillError):
    """A run that cannot continue: the loss became NaN, or memory ran out."""


class ProcessGroupError(QuillError):
    """Processes of one run that do not find each other, do not agree, or one of which has ended."""


class MissingDependencyError(QuillError):
    """An optional package that this feature needs and that is not installed."""


def first_line(error: BaseException, length: int = 160) -> str:
    """Return the first line of an error's text, or the name of its type, in at most `length` characters.

    A line that ends with a colon introduces the next one, so both are returned: "backend='inductor' raised: …".
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:length]


def shorten(message: str, length: int = LONGEST_MESSAGE) -> str:
    """Return the message as one line of at most `length` characters, cut in its middle where it is longer."""
    if len(message) > length:
        message = f"{message[: 2 * length // 3]} … {message[-length // 3 + 3 :]}"
    return " ".join(line.strip() for line in message.splitlines())
