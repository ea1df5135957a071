"""The text of --help, as wide as the terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quill.cli.parsing.flag import Flag

NARROWEST, WIDEST = 40, 118  # columns
LONGEST_NAME = 36  # columns of the left side; a flag that is longer has its help below it
STACKED = 72  # in a narrower terminal, the help is below each flag


def terminal_width() -> int:
    """Return the number of columns to use: those of the terminal (COLUMNS, if set), within readable limits.

    Like shutil.get_terminal_size, but that module loads compression libraries at its import.
    """
    try:
        columns = int(os.environ.get("COLUMNS", "")) or WIDEST
    except ValueError:
        try:
            columns = os.get_terminal_size(1).columns or WIDEST
        except OSError:
            columns = WIDEST
    return max(NARROWEST, min(WIDEST, columns))


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Return the text as lines of at most `width` columns, never broken inside a word."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(rows: Sequence[tuple[str, str]], width: int, left: int) -> list[str]:
    """Return names and explanations in two columns, or each explanation below its name in a narrow terminal.

    `left` is the width of the first column; a longer name has its explanation below it.
    """
    lines: list[str] = []
    for name, text in rows:
        if width < STACKED:
            lines += [f"  {emphasize(name)}", *wrap(text, width, " " * 6)]
            continue
        first, *more = wrap(text, width, " " * (left + 4)) or [""]
        if len(name) > left:
            lines += [f"  {emphasize(name)}", first, *more]
        else:
            lines += [f"  {emphasize(name)}{' ' * (left - len(name))}  {first.strip()}", *more]
    return lines


def help_page(usage: str, description: str, flags: Sequence[Flag]) -> str:
    """Return the page: how to call the command, what it does, and its flags under the titles of their groups."""
    width = terminal_width()
    lines = [*wrap(f"usage: {usage}", width), "", *wrap(description, width)]
    left = min(LONGEST_NAME, max(len(_typed(flag)) for flag in flags))
    for group in dict.fromkeys(flag.group for flag in flags):
        rows = [(_typed(flag), _explained(flag)) for flag in flags if flag.group == group]
        lines += ["", f"{emphasize(group)}:", *table(rows, width, left)]
    return "\n".join(lines)


def emphasize(text: str) -> str:
    """Return the text in bold for a terminal that shows it, unless NO_COLOR is set (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout and sys.stdout.isatty() else text


def _typed(flag: Flag) -> str:
    """Return the flag as it would be typed, with its default."""
    if flag.name == "help":
        return "--help"
    unset = flag.default in (None, "") or isinstance(flag.default, list)
    return f"--{flag.name}={'…' if unset else flag.default}"


def _explained(flag: Flag) -> str:
    """Return the help, with the choices if it does not name them all."""
    text = flag.help()
    choices = flag.choices
    return text if all(choice in text for choice in choices) else f"{text} ({' or '.join(choices)})"
