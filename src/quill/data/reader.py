"""Read many files, each once, with progress and notes on what was changed or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from quill.data.compression import text_ending
from quill.data.formats import FileText, NotTextError, OnProgress, check_file, read_file
from quill.data.text_files import PLAIN_ENDINGS, FoundFiles, describe_skipped


class Reader:
    """Reads files one after another, each once; reports progress, and collects notes."""

    def __init__(self, found: Sequence[FoundFiles], any_bytes: bool, on_progress: OnProgress) -> None:
        self._any_bytes, self._on_progress = any_bytes, on_progress
        self._changes, self._skipped = set[str](), Counter[str]()
        self._seen = set[tuple[int, int]]()  # device and inode of each file, which several paths may lead to
        self._total = self._done = self._repeated = 0
        for each in found:
            self._skipped += each.skipped
            each.paths[:] = [path for path in each.paths if self._is_new(path)]

    def _is_new(self, path: Path) -> bool:
        status = check_file(path)
        if (identity := (status.st_dev, status.st_ino)) in self._seen:
            self._repeated += 1
            return False
        self._seen.add(identity)
        self._total += status.st_size
        return True

    def texts_of(self, found: FoundFiles) -> list[str]:
        """Return the text of each file, empty ones included."""
        return [file.text for path in found.paths if (file := self._read(path, optional=found.in_folder))]

    def _read(self, path: Path, *, optional: bool) -> FileText | None:
        try:
            file = read_file(path, any_bytes=self._any_bytes, on_bytes=self._advance(path))
        except NotTextError:
            if not optional or text_ending(path) not in PLAIN_ENDINGS:
                raise
            self._skipped[f"{text_ending(path)} not in UTF-8"] += 1
            return None
        self._changes.update(file.changes)
        return file

    def _advance(self, path: Path) -> Callable[[int], None]:
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
