"""`quill train`: text in, a model out. It calls quill.run, and prints the next command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quill.cli.arguments import Parser, add_configuration
from quill.distributed.environment import is_first

if TYPE_CHECKING:
    from quill.runs.start import Run


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill train` to the parser: all settings of a run, and what to do with an earlier one."""
    parser.description += " Under torchrun its processes train together: torchrun --nproc_per_node=2 -m quill train …"
    parser.take_bare_word("dataset", several=True)
    parser.add_argument(
        "--resume",
        type=bool | Literal["best"],
        default=False,
        help="resume the run in out_dir from its last checkpoint (best: from its best one)",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the run that out_dir holds")
    parser.add_argument(
        "--minutes",
        type=float | None,
        help="time to train: chooses model, batch, rates and steps for this text and machine; flags override it",
    )
    add_configuration(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the next command: of several processes only rank 0 does."""
    from quill.runs.start import run as start_run

    result = start_run(**arguments.given)
    if not is_first():
        return 130 if result.reason == "interrupted" else 0
    if result.reason == "interrupted":
        return say_how_to_resume("train", result)
    print(f"next: quill generate --out_dir={quote(result.out_dir)}")
    return 0


def say_how_to_resume(command: str, result: Run) -> int:
    """Print how to resume an interrupted run, and return the exit code of an interrupted command."""
    print(f"saved; resume with: quill {command} --resume=True --out_dir={quote(result.out_dir)}")
    return 130


def quote(path: str | Path) -> str:
    """Return a path as it can be pasted into a shell."""
    text = str(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text
