"""config.yaml: every setting of a run, under a line with a checksum of them.

The checksum is of the values, so comments, line ends and the order of lines may change. It stands first, because a file
that is cut loses its end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from quill.errors import CheckpointError
from quill.files import write_atomically

CONFIG = "config.yaml"
_CHECKSUM = re.compile(r"^# SHA-256 of these settings: ([0-9a-f]{64})\s*$", re.MULTILINE)


def write_config(out_dir: Path, settings: Mapping[str, Any], mark: str = "") -> None:
    """Write the complete configuration of a run, which `--config` and `--resume` read; `mark` is a comment above it."""
    text = format_config(settings)
    checksum = _checksum(yaml.safe_load(text))
    try:
        write_atomically(out_dir / CONFIG, f"{mark}# SHA-256 of these settings: {checksum}\n{text}")
    except OSError as error:
        raise CheckpointError(
            f"{out_dir / CONFIG} cannot be written: {error.strerror or error}: free some disk space, or choose another "
            f"out_dir"
        ) from error


def format_config(settings: Mapping[str, Any]) -> str:
    """Return the settings as YAML that `--config` reads back."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def require_unchanged(out_dir: Path, stored: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the settings `stored` in config.yaml are not those that were written there.

    Without a checksum, as in runs of earlier versions, nothing is compared.
    """
    source = out_dir / CONFIG
    written = _CHECKSUM.search(source.read_text(encoding="utf-8"))
    if written and written[1] != _checksum(stored):
        raise CheckpointError(
            f"{source} was changed since the run wrote it (its settings have another SHA-256): put it back, and give "
            f"what should change as a flag; or delete its line with the SHA-256 to resume with these settings"
        )


def _checksum(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode()).hexdigest()
