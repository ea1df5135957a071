"""The command line: find the command, parse its arguments, run it, and print an error as one line.

`quill --help` must be instant, so nothing heavy is imported before the command is known. Exit codes: 0 done, 2 an error
that the user can correct, 128 + n ended by signal n (130 for Ctrl-C).
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Sequence

from quill import process
from quill.cli.parsing.streams import OUTPUT, standard_streams
from quill.distributed.environment import is_first
from quill.errors import ConfigError, QuillError
from quill.validation import nearest, show

COMMANDS = {
    "demo": ("quill.cli.demo", "train a small GPT for a minute and generate text with it"),
    "prepare": ("quill.cli.prepare", "write the token files of a text (train does this too)"),
    "train": ("quill.cli.train", "train a GPT on Tiny Shakespeare or on your own text"),
    "generate": ("quill.cli.generate", "generate text with a trained GPT"),
    "evaluate": ("quill.cli.evaluate", "measure a trained GPT: loss over a whole split, bits per character"),
    "estimate": ("quill.cli.estimate", "estimate a run before it starts: memory, time, parameters"),
    "info": ("quill.cli.info", "show what is in a run or a checkpoint"),
    "serve": ("quill.cli.serve", "serve trained GPTs over HTTP: a page, and an API that OpenAI's clients speak"),
    "inspect": ("quill.cli.lab.inspect", "look inside a trained GPT: attention, lenses, attribution, ablation"),
    "experiment": (
        "quill.cli.lab.experiment",
        "check a lesson about GPTs by an experiment, with a verdict",
    ),
    "v2": ("quill.cli.v2", 'train with the recipe of "Let\'s build GPT", then generate 500 characters'),
}
_TRAINING = {"demo", "train", "v2"}
"""Commands whose printed lines are not their result: they continue when standard output has no reader."""

# What the system reports when a path cannot be used. Any other OSError is a bug and keeps its traceback.
_BAD_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ELOOP,
}  # fmt: skip
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that a user can cause become one line on stderr.

    `--debug`, anywhere, lets every error through with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["help"] and len(words) > 1:  # as in git: `quill help train`
        words = [words[1], "--help"]
    command = words[0] if words and words[0] in COMMANDS else ""
    process.received.clear()
    process.spin_briefly()
    with standard_streams(optional_output=command in _TRAINING):
        try:
            code = _run(command, words)
            sys.stdout.flush()
            return 128 + process.received[0] if code == 130 and process.received else code
        except BrokenPipeError:  # the reader has closed the pipe, as in `quill generate | head`
            return 0
        except (KeyboardInterrupt, process.Terminated) as error:
            if debug:
                raise
            if sys.stderr.isatty():
                print(file=sys.stderr)  # below the ^C that the terminal shows
            number = error.number if isinstance(error, process.Terminated) else signal.SIGINT
            return _complain(command, process.describe_signal(number), 128 + number)
        except QuillError as error:
            if debug:
                raise
            another_says_it = not is_first() if error.reported is None else error.reported
            return 2 if another_says_it else _complain(command, str(error), 2)
        except OSError as error:
            if debug or not (message := _describe(error)):
                raise
            return _complain(command, message, 2)


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
        known = "; quill --help lists them" if words[0].startswith("-") else f"; the commands are {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {show(words[0])}{nearest(words[0], COMMANDS)}{known}")
    from quill.cli.arguments import Parser

    module = load_command(command)
    parser = Parser(command, f"{COMMANDS[command][1][0].upper()}{COMMANDS[command][1][1:]}.")
    module.add_arguments(parser)
    arguments = parser.read(words[1:])
    if arguments.help:
        print(parser.format_help())
        return 0
    for note in arguments.notes if is_first() else ():
        print(f"quill {command}: {note}", file=sys.stderr)
    return module.run(arguments) or 0


def _help() -> str:
    from quill.cli.parsing.help_page import table, terminal_width, wrap

    width = terminal_width()
    commands = [(f"quill {name}", text) for name, (_, text) in COMMANDS.items()]
    paragraphs = [
        wrap("Quill: a GPT from scratch that you can read, run, look inside and trust.", width),
        table(commands, width, left=max(len(name) for name, _ in commands)),
        wrap("Each command explains its flags: quill train --help. With --debug an error shows its traceback.", width)
        + wrap("New here? Start with: quill demo", width),
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _complain(command: str, message: str, code: int) -> int:
    kind = "error: " if code == 2 else ""
    print(f"quill{' ' + command if command else ''}: {kind}{' '.join(message.split())}", file=sys.stderr)
    return code


def _describe(error: OSError) -> str:
    """Return what could not be read or written, why, and what to do; "" for an error that no user can cause."""
    reason = error.strerror or str(error)
    if error.filename == OUTPUT:
        return f"{OUTPUT} cannot be written: {reason}; redirect it to another file"
    what = f"{show(str(error.filename))}: " if error.filename else ""
    if error.errno in _DISK_FULL:
        return f"{what}{reason}: nothing more can be written; free some disk space, or choose another --out_dir"
    if not error.filename or error.errno not in _BAD_PATH:
        return ""
    advice = {
        errno.ENOENT: "check the path",
        errno.EISDIR: "give a file instead of a folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.ELOOP: "symbolic links form a loop",
        errno.EROFS: "choose a folder that can be written to",
    }
    return f"{what}{reason}: {advice.get(error.errno, 'choose another path, or change its permissions')}"


if __name__ == "__main__":
    sys.exit(main())
