"""Read many files, each once, with progress and notes on what was changed or left out."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quill.data.reading.compression import COMPRESSED, text_ending
from quill.data.reading.formats import RECORD_ENDINGS, FileText, NotTextError, OnProgress, check_file, read_file
from quill.data.reading.text_files import PLAIN_ENDINGS, FoundFiles, describe_skipped

_COMPRESSED_TIMES, _PARQUET_TIMES = 16, 4
"""How much text may be in a byte of such a file: an estimate that is too high rather than too low."""

_IDENTITY_BITS = 2**64 - 1


class Reader:
    """Reads files one after another, each once; reports progress, and collects notes."""

    def __init__(self, found: Sequence[FoundFiles], any_bytes: bool, on_progress: OnProgress) -> None:
        self.any_bytes, self._on_progress = any_bytes, on_progress
        self._changes, self._skipped = set[str](), Counter[str]()
        self._total = self._done = self._repeated = 0
        self.most_text = 0
        """bytes of text that the files may hold"""
        self._digest, self._folder = hashlib.sha256(), os.getcwd()
        self._check(found)

    @property
    def digest(self) -> str:
        """A digest of the paths, sizes and times of the files."""
        return self._digest.hexdigest()

    def _check(self, found: Sequence[FoundFiles]) -> None:
        """Note what is known of the files before they are read, and remove those that an earlier path leads to."""
        count = sum(len(each.paths) for each in found)
        identities = array("Q"), array("Q")  # device and inode of each file
        for number, path in enumerate(path for each in found for path in each.paths):
            status = self._add(path)
            for numbers, value in zip(identities, (status.st_dev, status.st_ino), strict=True):
                numbers.append(value & _IDENTITY_BITS)
            if number % 1000 == 999:
                self._on_progress(f"checking {count:,} files", number / count)
        repeated = _repeated(*(np.asarray(numbers) for numbers in identities))
        start = 0
        for each in found:
            end = start + len(each.paths)
            if here := {place - start for place in repeated if start <= place < end}:
                for path in (path for place, path in enumerate(each.paths) if place in here):
                    self._add(path, -1)
                each.paths.drop(here)
            start = end
            self._skipped += each.skipped
        self._repeated = len(repeated)

    def _add(self, path: str, times: int = 1) -> os.stat_result:
        """Add the size of a file to the totals, or subtract it (-1)."""
        status = check_file(path)
        self._total += times * status.st_size
        ending = os.path.splitext(path)[1].lower()
        factor = _COMPRESSED_TIMES if ending in COMPRESSED else _PARQUET_TIMES if ending == ".parquet" else 1
        self.most_text += times * status.st_size * factor
        described = f"{os.path.join(self._folder, path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        self._digest.update(described.encode("utf-8", "surrogatepass"))
        return status

    def texts_of(self, found: FoundFiles) -> list[str]:
        """Return the text of each file, empty ones included."""
        return [file.text for path in found.paths if (file := self.read(Path(path), optional=found.in_folder))]

    def read(self, path: Path, *, optional: bool) -> FileText | None:
        """Return the text of a file; None if it was left out, because it is `optional` and not text."""
        try:
            file = read_file(path, any_bytes=self.any_bytes, on_bytes=self.advance(path))
        except NotTextError as error:
            self.leave_out(path, error, optional=optional)
            return None
        self.note(file.changes)
        return file

    def leave_out(self, path: Path, error: NotTextError, *, optional: bool) -> None:
        """Count a file that is not text as left out; raise the error if it must be text."""
        if not optional or text_ending(path) not in PLAIN_ENDINGS:
            raise error
        self._skipped[f"{text_ending(path)} not in UTF-8"] += 1

    def may_be_raw(self, path: Path) -> bool:
        """Return whether a file that is not text is used byte for byte."""
        return self.any_bytes and text_ending(path) not in RECORD_ENDINGS

    def note(self, changes: Iterable[str]) -> None:
        """Add changes that were made to a file to the notes."""
        self._changes.update(changes)

    def advance(self, path: Path) -> Callable[[int], None]:
        """Return a function that is called with the size of each piece of a file that was read."""

        def advance(count: int) -> None:
            self._done += count
            self._on_progress(f"reading {path.name}", min(1.0, self._done / self._total) if self._total else 1.0)

        return advance

    def notes(self) -> list[str]:
        """Return notes on what was changed, found twice, or left out."""
        repeated = f"{self._repeated} file{'s' * (self._repeated != 1)} found twice and read once"
        return [
            *sorted(self._changes),
            *([repeated] if self._repeated else []),
            *([f"skipped {describe_skipped(self._skipped)}"] if self._skipped else []),
        ]

    def state(self) -> dict[str, Any]:
        """Return what was read and noted so far, as a JSON object."""
        return {"done": self._done, "changes": sorted(self._changes), "skipped": dict(self._skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of an earlier process; an empty one changes nothing."""
        self._done = state.get("done", self._done)
        self._changes.update(state.get("changes", ()))
        self._skipped = Counter(state.get("skipped", self._skipped))


def _repeated(devices_N: np.ndarray, inodes_N: np.ndarray) -> list[int]:
    """Return the places of files that are at an earlier place too."""
    order_N = np.lexsort((inodes_N, devices_N))  # keeps the order of equal ones
    devices_N, inodes_N = devices_N[order_N], inodes_N[order_N]
    same_N = (devices_N[1:] == devices_N[:-1]) & (inodes_N[1:] == inodes_N[:-1])
    return sorted(order_N[1:][same_N].tolist())
