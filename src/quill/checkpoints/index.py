"""The index of a run's checkpoints: one small file that names the last and the best one, written atomically.

    out/checkpoints/index.json
    {"format", "last": {"step", "manifest_sha256"}, "best": the same or null, "metrics": {"bytes", "sha256"}, "sha256"}

Replacing this file makes a new checkpoint `last`, and `best` if it is: after a crash both are old or both are new. The
index has a checksum of its own, and names folders by their step, so that it cannot name anything outside `checkpoints`.
The files `out/last` and `out/best` repeat it for people. Runs of format 1 have only those two files. "metrics" is the
length and SHA-256 of metrics.jsonl when the index was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quill.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    STATE,
    folder_name,
    parse_manifest,
    parse_small_file,
    read_small_file,
    sha256_of,
    step_of,
)
from quill.checkpoints.schema import OBJECT, SHA256, STEP, check_record, one_of, optional
from quill.checkpoints.tensor_file import TensorFile
from quill.errors import CheckpointError
from quill.files import write_atomically
from quill.validation import show

Which = Literal["best", "last"]
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run: its step, and the SHA-256 of its manifest, which holds those of its files."""

    step: int
    manifest_sha256: str


@dataclass(frozen=True)
class Index:
    """Which checkpoints of a run are the last and the best; before any evaluation there is no best."""

    last: Saved
    best: Saved | None

    def steps(self) -> set[int]:
        """Return the steps whose folders are kept."""
        return {saved.step for saved in (self.last, self.best) if saved}


def read_index(out_dir: Path) -> Index | None:
    """Return the index of a run, or None if there is no checkpoint; CheckpointError if it is damaged or missing."""
    source = index_file(out_dir)
    if os.path.lexists(source):
        return _parse_index(read_small_file(source), source)
    whole = whole_checkpoints(out_dir)
    if not whole and not os.path.lexists(out_dir / "last"):
        return None
    index = index_of_folders(out_dir)
    if any("format" in parse_small_file(read_small_file(whole[step] / MANIFEST), source) for step in index.steps()):
        raise CheckpointError(
            f"{source} is missing: repair the run with quill train --resume=True --out_dir={out_dir}, "
            f"or name one checkpoint, such as {whole[index.last.step]}"
        )
    return index


def write_index(out_dir: Path, index: Index) -> None:
    """Replace the index atomically and durably, then the two files for people. Errors are the system's OSError."""
    record = {"format": FORMAT, **asdict(index), "metrics": _describe_file(out_dir / METRICS)}
    write_atomically(index_file(out_dir), json.dumps(record | {"sha256": _checksum(record)}, indent=2) + "\n")
    with contextlib.suppress(OSError):  # they are repaired by the next save
        write_pointers(out_dir, index)


def write_pointers(out_dir: Path, index: Index) -> None:
    """Write the names of the last and best folders into the files `last` and `best`, if they differ."""
    for name, saved in (("last", index.last), ("best", index.best)):
        text = f"{folder_name(saved.step)}\n" if saved else None
        file = out_dir / name
        if text is None:
            file.unlink(missing_ok=True)
        elif not os.path.isfile(file) or file.read_bytes() != text.encode():
            write_atomically(file, text)


def index_of_folders(out_dir: Path) -> Index:
    """Return the index that a run should have, from its folders: for format 1, and after a crash in the first save.

    The training state of the last checkpoint decides which one is the best, even if the file `best` differs.
    """
    whole = whole_checkpoints(out_dir)
    last = _pointed_to(out_dir, "last", whole)
    last = max(whole) if last is None else last
    best = _pointed_to(out_dir, "best", whole)
    recorded = _recorded_best_step(whole[last] / STATE)
    best = recorded if recorded in whole else best
    if best is None and recorded:
        raise CheckpointError(
            f"{out_dir} has lost its best checkpoint, {folder_name(recorded)}: name the other one, {whole[last]}"
        )
    return Index(saved(whole[last]), None if best is None else saved(whole[best]))


def saved(folder: Path) -> Saved:
    """Return the entry of the index for a checkpoint folder."""
    data = read_small_file(folder / MANIFEST)
    return Saved(parse_manifest(data, folder / MANIFEST).step, hashlib.sha256(data).hexdigest())


def folder_of(out_dir: Path, entry: Saved) -> Path:
    """Return the folder of an entry; CheckpointError unless its manifest is the one that was saved."""
    folder = out_dir / "checkpoints" / folder_name(entry.step)
    if not os.path.isfile(folder / MANIFEST):
        raise CheckpointError(f"{folder / MANIFEST} is missing: use another checkpoint of the run")
    if sha256_of(folder / MANIFEST) != entry.manifest_sha256:
        raise CheckpointError(f"{folder / MANIFEST} was altered since it was written: use another checkpoint")
    return folder


def whole_checkpoints(out_dir: Path) -> dict[int, Path]:
    """Return the complete checkpoint folders of a run by their step: those with a manifest, which is written last."""
    with contextlib.suppress(OSError):
        folders = list((out_dir / "checkpoints").iterdir())
        steps = {folder: step_of(folder) for folder in folders if os.path.isfile(folder / MANIFEST)}
        return {step: folder for folder, step in steps.items() if step is not None}
    return {}


def index_file(out_dir: Path) -> Path:
    """Return the path of a run's index."""
    return out_dir / "checkpoints" / "index.json"


def _parse_index(data: bytes, source: Path) -> Index:
    record = parse_small_file(data, source)
    entry = optional(OBJECT)
    rules = {"format": one_of(FORMAT), "last": OBJECT, "best": entry, "metrics": entry, "sha256": SHA256}
    check_record({"metrics": None} | record, rules, source)
    entries = [each and check_record(each, {"step": STEP, "manifest_sha256": SHA256}, source) for each in _pair(record)]
    if record.pop("sha256") != _checksum(record):
        raise CheckpointError(
            f"{source} was altered since it was written: name a checkpoint in {source.parent}, "
            f"or delete this file and repair the run with resume=True"
        )
    last, best = (Saved(**each) if each else None for each in entries)
    assert last is not None
    return Index(last, best)


def metrics_are_whole(out_dir: Path) -> bool:
    """Return whether metrics.jsonl still begins with what it contained when the index was written."""
    source = index_file(out_dir)
    if not os.path.lexists(source):
        return True
    before = parse_small_file(read_small_file(source), source).get("metrics")
    if before is None:
        return True
    check_record(before, {"bytes": STEP, "sha256": SHA256}, source)
    return _describe_file(out_dir / METRICS, before["bytes"]) == before


def _describe_file(file: Path, size: int | None = None) -> dict[str, Any] | None:
    """Return the length and SHA-256 of a file, or of its first `size` bytes; None if it is missing or shorter."""
    try:
        with open(file, "rb") as opened:
            length = os.fstat(opened.fileno()).st_size
            size = length if size is None else size
            if size > length:
                return None
            digest = hashlib.sha256()
            for start in range(0, size, 1 << 20):
                digest.update(opened.read(min(1 << 20, size - start)))
            return {"bytes": size, "sha256": digest.hexdigest()} if opened.tell() == size else None
    except OSError:
        return None


def _pair(record: dict[str, Any]) -> tuple[Any, Any]:
    return record["last"], record["best"]


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _pointed_to(out_dir: Path, pointer: Which, whole: dict[int, Path]) -> int | None:
    """Return the step that the file `last` or `best` names, or None if there is no such file."""
    source = out_dir / pointer
    if not os.path.lexists(source):
        return None
    name = read_small_file(source).decode("utf-8", "replace").strip()
    step = next((step for step, folder in whole.items() if folder.name == name), None)
    if step is None:
        raise CheckpointError(
            f"{source} names {show(name)}, which is not a checkpoint of the run: name one in {out_dir / 'checkpoints'}"
        )
    return step


def _recorded_best_step(file: Path) -> int | None:
    """Return the best step that a training state records, or None."""
    with TensorFile(file) as opened:
        progress = opened.metadata.get("progress")
    step = progress.get("best_step") if isinstance(progress, dict) else None
    return step if STEP.accepts(step) else None
