"""Replace a run by a new one without losing the old one before the new one has begun to save.

The earlier run is moved file by file into `.replaced.moving`, and this folder is then renamed to `.replaced`. So after
a crash the first name means that some files are still, or again, in their place, and all of them belong to the earlier
run; the second means that `.replaced` is whole, and what lies beside it belongs to the new run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from quill.checkpoints.lock import lock_run
from quill.checkpoints.run_folder import holds_run, remove_run
from quill.files import remove_folder, sync_folder

ASIDE = ".replaced"
"""Folder inside a run's folder that holds the earlier run until the new one has a checkpoint."""
MOVING = ".replaced.moving"
"""The same folder while the files of the earlier run are moved there or back."""
WRITTEN = (
    "checkpoints", "last", "best", "metrics.jsonl", "samples.txt", "loss.png", "film.safetensors", "tensorboard",
    "config.yaml",
)  # fmt: skip
"""What a run writes into its folder."""


@contextlib.contextmanager
def replacing_run(out_dir: Path, replace: bool) -> Iterator[None]:
    """Move an earlier run in this folder aside for the block, if it is to be replaced.

    At the end of the block it is deleted if the new run has saved a checkpoint, and comes back if not. What a crash
    left aside comes back first, unless a newer run has saved a checkpoint.
    """
    settle(out_dir)
    try:
        if replace:
            move_aside(out_dir)
        yield
    finally:
        settle(out_dir)


def bring_back(out_dir: Path) -> None:
    """Settle what a crash left aside, if anything, so that a run that was not replaced is found again."""
    if (out_dir / ASIDE).is_dir() or (out_dir / MOVING).is_dir():
        with lock_run(out_dir):
            settle(out_dir)


def move_aside(out_dir: Path) -> None:
    """Move everything that a run wrote into its folder aside, and nothing else."""
    if not holds_run(out_dir):
        remove_run(out_dir)
        return
    moving = out_dir / MOVING
    moving.mkdir()
    for name in WRITTEN:
        if os.path.lexists(out_dir / name):
            os.replace(out_dir / name, moving / name)
    os.replace(moving, out_dir / ASIDE)
    sync_folder(out_dir)


def settle(out_dir: Path) -> None:
    """Delete the run that was moved aside if its successor has a checkpoint, or else bring it back."""
    aside, moving = out_dir / ASIDE, out_dir / MOVING
    if aside.is_dir() and holds_run(out_dir):
        remove_folder(aside)
    elif aside.is_dir():
        remove_run(out_dir)
        with contextlib.suppress(OSError):
            (out_dir / "checkpoints").rmdir()
        os.replace(aside, moving)
    if moving.is_dir():
        for path in moving.iterdir():
            os.replace(path, out_dir / path.name)
        moving.rmdir()
