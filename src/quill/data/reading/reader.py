"""Read many files, each once, with progress and notes on what was changed or left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from quill.data.reading.compression import COMPRESSED, text_ending
from quill.data.reading.formats import RECORD_ENDINGS, FileText, NotTextError, OnProgress, check_file, read_file
from quill.data.reading.text_files import PLAIN_ENDINGS, FoundFiles, describe_skipped

_COMPRESSED_TIMES, _PARQUET_TIMES = 16, 4
"""How much text may be in a byte of such a file: an estimate that is too high rather than too low."""


class Reader:
    """Reads files one after another, each once; reports progress, and collects notes."""

    def __init__(self, found: Sequence[FoundFiles], any_bytes: bool, on_progress: OnProgress) -> None:
        self.any_bytes, self._on_progress = any_bytes, on_progress
        self._changes, self._skipped = set[str](), Counter[str]()
        self._seen = set[tuple[int, int]]()  # device and inode of each file, which several paths may lead to
        self._total = self._done = self._repeated = 0
        self.most_text = 0
        """bytes of text that the files may hold"""
        self._digest = hashlib.sha256()
        for each in found:
            self._skipped += each.skipped
            each.paths[:] = [path for path in each.paths if self._is_new(path)]

    @property
    def digest(self) -> str:
        """A digest of the paths, sizes and times of the files."""
        return self._digest.hexdigest()

    def _is_new(self, path: Path) -> bool:
        status = check_file(path)
        if (identity := (status.st_dev, status.st_ino)) in self._seen:
            self._repeated += 1
            return False
        self._seen.add(identity)
        self._total += status.st_size
        compressed, parquet = path.suffix.lower() in COMPRESSED, path.suffix.lower() == ".parquet"
        self.most_text += status.st_size * (_COMPRESSED_TIMES if compressed else _PARQUET_TIMES if parquet else 1)
        described = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        self._digest.update(described.encode("utf-8", "surrogatepass"))
        return True

    def texts_of(self, found: FoundFiles) -> list[str]:
        """Return the text of each file, empty ones included."""
        return [file.text for path in found.paths if (file := self.read(path, optional=found.in_folder))]

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
