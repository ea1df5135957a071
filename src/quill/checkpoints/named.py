"""Models by name: the newest run of this folder, and `tiny`, a small trained model that comes with Quill."""

from __future__ import annotations

import os
from pathlib import Path

from quill.checkpoints.model_file import checked_path
from quill.checkpoints.run_folder import newest_run
from quill.files import expand_home

TINY = "tiny"
"""Name of the model in this package. A file or folder of this name in the current folder comes first."""


def find_model(name: str | os.PathLike[str] | None) -> Path:
    """Return the path of the model that a user named: a path, `tiny`, or None for the newest run in this folder."""
    if name is None:
        return newest_run()
    path = checked_path(name)
    return tiny_model() if means_tiny(path) else expand_home(path)


def means_tiny(path: Path) -> bool:
    """Return whether a path is the name `tiny`, and nothing in the current folder has that name."""
    return str(path) == TINY and not os.path.lexists(path)


def tiny_model() -> Path:
    """Return the folder of the model in this package. Its README.md says how it was made."""
    return Path(__file__).parent.parent / TINY
