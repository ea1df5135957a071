"""The manifest of a checkpoint folder (its step and the SHA-256 of its two files), and reading of small JSON files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quill.checkpoints.schema import OBJECT, SHA256, STEP, check_record, one_of, parse_json
from quill.errors import CheckpointError
from quill.files import write_atomically

FORMAT = 2
"""Format of new checkpoints. Format 1, which has other names for some weights and no index, can still be read."""

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training.safetensors", "manifest.json"

MOST_SMALL_BYTES = 1 << 16
_STEP_FOLDER = re.compile(r"step-([0-9]{6,16})")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder should contain: its step, and the SHA-256 of each file."""

    step: int
    sha256: dict[str, str]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint folder, durably."""
    record = {"format": FORMAT, "step": manifest.step, "sha256": manifest.sha256}
    write_atomically(folder / MANIFEST, json.dumps(record, indent=2) + "\n")


def manifest_beside(file: Path) -> Manifest | None:
    """Return the manifest that covers a weights or training file; None for a file outside a checkpoint folder.

    CheckpointError if it is damaged, of another step than its folder, or missing from a folder of a run.
    """
    folder = file.absolute().parent
    step = step_of(folder)
    if file.name not in (WEIGHTS, STATE) or (step is None and not (folder / MANIFEST).exists()):
        return None
    source = file.parent / MANIFEST
    manifest = parse_manifest(read_small_file(source), source)
    if step not in (None, manifest.step):
        raise CheckpointError(f"{source} is of step {manifest.step}, not of {folder.name}: use another checkpoint")
    return manifest


def parse_manifest(data: bytes, source: Path) -> Manifest:
    """Return the manifest in these bytes; CheckpointError if it is damaged."""
    record = parse_small_file(data, source)
    of_format_2 = {"format": one_of(FORMAT)} if "format" in record else {}
    check_record(record, {"step": STEP, "sha256": OBJECT} | of_format_2, source)
    check_record(record["sha256"], {WEIGHTS: SHA256, STATE: SHA256}, source)
    return Manifest(record["step"], record["sha256"])


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 that each file of a checkpoint folder should have; empty if there is no manifest."""
    manifest = manifest_beside(folder / WEIGHTS) if (folder / MANIFEST).exists() else None
    return manifest.sha256 if manifest else {}


def read_small_file(file: Path) -> bytes:
    """Return the contents of a pointer, manifest or index; CheckpointError if it is missing or far too large."""
    if not os.path.isfile(file):
        raise CheckpointError(f"{file} is missing: use another checkpoint of the run")
    try:
        with open(file, "rb") as opened:
            data = opened.read(MOST_SMALL_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > MOST_SMALL_BYTES:
        raise CheckpointError(f"{file} is damaged: it has more than {MOST_SMALL_BYTES:,} bytes")
    return data


def parse_small_file(data: bytes, source: Path) -> dict[str, Any]:
    """Return the JSON object in these bytes of `source`; CheckpointError if they are something else."""
    try:
        record = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{source} is damaged (not JSON): use another checkpoint of the run") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{source} is damaged (not a JSON object): use another checkpoint of the run")
    return record


def step_of(folder: Path) -> int | None:
    """Return the step of a checkpoint folder by its name, or None if it has another kind of name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match and folder_name(int(match[1])) == folder.name else None


def folder_name(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step-{step:06d}"


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
