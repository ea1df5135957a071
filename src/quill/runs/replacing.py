"""Replace a run by a new one without losing the old one before the new one has begun to save."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from quill.checkpoints.lock import lock_run
from quill.checkpoints.run_folder import holds_run, remove_run

ASIDE = ".replaced"
"""Folder inside a run's folder that holds the earlier run until the new one has a checkpoint."""
WRITTEN = ("checkpoints", "last", "best", "metrics.jsonl", "samples.txt", "loss.png", "tensorboard", "config.yaml")
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
    if (out_dir / ASIDE).is_dir():
        with lock_run(out_dir):
            settle(out_dir)


def move_aside(out_dir: Path) -> None:
    """Move everything that a run wrote into its folder aside, and nothing else."""
    if not holds_run(out_dir):
        remove_run(out_dir)
        return
    aside = out_dir / ASIDE
    aside.mkdir()
    for name in WRITTEN:
        if os.path.lexists(out_dir / name):
            os.replace(out_dir / name, aside / name)


def settle(out_dir: Path) -> None:
    """Delete the run that was moved aside if its successor has a checkpoint, or else bring it back."""
    aside = out_dir / ASIDE
    if not aside.is_dir():
        return
    if not holds_run(out_dir):
        remove_run(out_dir)
        with contextlib.suppress(OSError):
            (out_dir / "checkpoints").rmdir()
        for path in aside.iterdir():
            os.replace(path, out_dir / path.name)
    shutil.rmtree(aside, ignore_errors=True)
