"""`quill train`: text in, a model out. Prepares the text, guards what an earlier run left, or goes on with it.

A run's folder holds its whole configuration, so `quill train --resume=True` needs no other flag.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quill.checkpoints.run_folder import require_folder
from quill.cli.arguments import Parser, add_configuration, asked_settings, settings_of
from quill.errors import ConfigError
from quill.process import keep_freed_memory
from quill.runs.resume import refuse_existing_run, resumed_settings
from quill.runs.settings import build_configs
from quill.runs.start import prepare, start_training
from quill.validation import require

if TYPE_CHECKING:
    from quill.training.loop import TrainResult


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill train` takes: all fields of model and training, and what to do with old runs."""
    parser.take_bare_word("dataset")
    parser.add_argument(
        "--resume", type=bool, default=False, help="go on with the run in out_dir, from its last checkpoint"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="start over where out_dir already holds a run")
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help="how long to train: picks model, batch, rates and steps for this text and machine; flags go on top",
    )
    add_configuration(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what can be done next."""
    result = train_run(arguments)
    if result is None:
        return 0
    if result.reason == "interrupted":
        return say_how_to_go_on("train", arguments.out_dir)
    print(f"next: quill generate --out_dir={quote(arguments.out_dir)}")
    return 0


def train_run(arguments: argparse.Namespace) -> TrainResult | None:
    """Train or go on as the arguments say, and return how it ended; None when there was nothing left to do."""
    if arguments.resume and arguments.overwrite:
        raise ConfigError("--resume=True goes on and --overwrite=True starts over: use one of them")
    if arguments.minutes is not None:
        return train_for_minutes(arguments)
    settings = resumed_settings(arguments) if arguments.resume else settings_of(arguments)
    out_dir = Path(settings["out_dir"])
    build_configs(settings)  # impossible values are found before any text is read
    require_folder(out_dir)
    if not arguments.resume and not arguments.overwrite:
        refuse_existing_run(out_dir, settings)
    keep_freed_memory()
    dataset = prepare(settings)
    if arguments.resume:
        from quill.checkpoints.run_folder import find_checkpoint

        done = int(find_checkpoint(out_dir, "last").name.removeprefix("step-"))
        if done >= settings["max_iters"]:
            print(
                f"nothing left to do: the run in {out_dir} has finished its {done} steps "
                f"(for more: --resume=True --max_iters={2 * done})"
            )
            return None
    return start_training(settings, dataset, resume=arguments.resume, replace=arguments.overwrite)


def train_for_minutes(arguments: argparse.Namespace) -> TrainResult:
    """Train for as long as the arguments say, with the recipe that suits this text, this machine and that time."""
    from quill.runs.time_budget import Pace, describe, fit_to_minutes

    require(0 < arguments.minutes < float("inf"), "minutes", arguments.minutes, "a number above 0")
    if arguments.resume:
        raise ConfigError("--minutes chooses a new run: leave it out to go on with one (--resume=True)")
    asked = asked_settings(arguments)
    if not ({"architecture", "optimizer"} & asked.keys()):
        arguments.architecture = "modern"
    build_configs(settings_of(arguments))
    out_dir = Path(arguments.out_dir)
    require_folder(out_dir)
    if not arguments.overwrite:
        refuse_existing_run(out_dir, asked)
    keep_freed_memory()
    started, seconds = time.monotonic(), arguments.minutes * 60
    dataset = prepare(settings_of(arguments) | {"block_size": asked.get("block_size", 8)})
    settings, speed = fit_to_minutes(dataset, arguments.minutes, asked)
    print(describe(settings, arguments.minutes), flush=True)
    plan = None if "max_iters" in asked else Pace(started, seconds, settings["max_iters"], speed.look)
    late = started + 1.1 * seconds  # only a machine that has become much slower since it was asked is stopped half way
    stop: Callable[[], str | None] = lambda: "time" if time.monotonic() > late else None  # noqa: E731
    return start_training(settings, dataset, replace=arguments.overwrite, stop=stop, plan=plan)


def say_how_to_go_on(command: str, out_dir: str) -> int:
    """Say how an interrupted run goes on, and return the exit code of an interrupted command."""
    print(f"saved; go on with: quill {command} --resume=True --out_dir={quote(out_dir)}")
    return 130


def quote(path: str | Path) -> str:
    """Return a path as it can be pasted into a shell."""
    text = str(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text
