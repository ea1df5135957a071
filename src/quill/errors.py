"""The errors that a user can cause, and the checks that raise them: the ground floor that every room may stand on.

Each message is one line that names the thing, its value, and what to do. The command line prints that line
and exits with code 2; a program that imports Quill catches the type.
"""

from __future__ import annotations


class QuillError(Exception):
    """Something that the user can put right. Its text is one line: what is wrong, and what to do."""


class ConfigError(QuillError, ValueError):
    """A setting with an unknown name, a wrong type or an impossible value."""


class CorpusError(QuillError):
    """A text or token file that is missing, empty, damaged, too short, or not text."""


class TokenizerError(QuillError, ValueError):
    """Text that a tokenizer cannot write as tokens, or tokens that stand for no text."""


class CheckpointError(QuillError):
    """A checkpoint that is missing, truncated, altered, or of another kind."""


class TrainingError(QuillError):
    """A run that cannot go on: a loss that is no number, or memory that ran out."""


class MissingDependencyError(QuillError):
    """An optional package that this feature needs and that is not installed."""
