"""The front door: finds the command, hands it its arguments, and turns errors into one line each.

`quill --help` must feel instant, so nothing heavy is imported before the command is known. Exit codes are the usual
ones: 0 done, 2 something the user can put right, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from quill.errors import ConfigError, QuillError
from quill.validation import nearest

COMMANDS = {
    "demo": ("quill.cli.demo", "train a small GPT for a minute, and watch it learn to write"),
    "prepare": ("quill.cli.prepare", "turn a text into token files (train does it by itself)"),
    "train": ("quill.cli.train", "train a GPT on Tiny Shakespeare or on a text of your own"),
    "generate": ("quill.cli.generate", "let a trained GPT write"),
    "evaluate": ("quill.cli.evaluate", "measure a trained GPT: loss over a whole split, bits per character"),
    "estimate": ("quill.cli.estimate", "say what a run will cost before it starts: memory, time, parameters"),
    "info": ("quill.cli.info", "show what is in a run or a checkpoint"),
    "v2": ("quill.cli.v2", "the founding recipe whole: train, then write 500 characters"),
}
# What the system says when a path cannot be used; anything else that it says is a bug and keeps its traceback.
_PATH_TROUBLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT,
}  # fmt: skip
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that a user can cause become one line on stderr.

    `--debug`, anywhere, lets every error through with its traceback.
    """
    _use_utf8()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = words[0] if words and words[0] in COMMANDS else ""
    try:
        code = _run(command, words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as in `quill generate | head`
        _forget_stdout()
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below the ^C that the terminal shows
        return _complain(command, "interrupted", 130)
    except QuillError as error:
        if debug:
            raise
        return _complain(command, str(error), 2)
    except OSError as error:
        if debug or not (error.errno in _DISK_FULL or (error.filename and error.errno in _PATH_TROUBLE)):
            raise
        return _complain(command, _describe(error), 2)


def load_command(name: str):
    """Return the module of a command: it has `add_arguments(parser)` and `run(arguments)`."""
    return importlib.import_module(COMMANDS[name][0])


def _run(command: str, words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("--version", "-V"):
        from quill import __version__

        print(f"quill {__version__}")
        return 0
    if not command:
        known = "; quill --help lists them" if words[0].startswith("-") else f"; there are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}{known}")
    from quill.cli.arguments import Parser

    module = load_command(command)
    parser = Parser(command, f"{COMMANDS[command][1][0].upper()}{COMMANDS[command][1][1:]}.")
    module.add_arguments(parser)
    arguments = parser.read(words[1:])
    if arguments.help:
        print(parser.format_help())
        return 0
    for note in arguments.notes:
        print(f"quill {command}: {note}", file=sys.stderr)
    return module.run(arguments) or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  quill {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "Quill: a GPT from scratch that you can read, run, look inside and trust.",
            "",
            *lines,
            "",
            "Each command explains its flags: quill train --help. With --debug an error shows its traceback.",
            "New here? Start with: quill demo",
        ]
    )


def _complain(command: str, message: str, code: int) -> int:
    kind = "" if code == 130 else "error: "
    print(f"quill{' ' + command if command else ''}: {kind}{' '.join(message.split())}", file=sys.stderr)
    return code


def _describe(error: OSError) -> str:
    """Return what could not be read or written, why, and what to do."""
    what = f"{str(error.filename)!r}: " if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return f"{what}{reason}: nothing more can be written; make room, or choose another folder with --out_dir"
    return f"{what}{reason}: choose a path that can be used, or change its permissions"


def _use_utf8() -> None:
    """Read and write UTF-8 whatever the console's code page is, so that Windows shows what Linux does."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        reconfigure = getattr(stream, "reconfigure", None)  # notebooks replace the streams by their own
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors=errors)


def _forget_stdout() -> None:
    """Point stdout at nothing, or Python complains about the broken pipe once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
