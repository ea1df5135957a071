"""A list of paths that stays small where there are a million files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Iterable, Iterator


class FileList:
    """Paths of files, in order. Neighbours in one folder share one string, so a million paths take some 20 MB."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._runs: list[tuple[str, str]] = []  # a folder, and the names of files in it, separated by NUL
        self._length = 0
        for folder, group in itertools.groupby(map(os.path.split, paths), key=lambda split: split[0]):
            self.add(folder, [name for _, name in group])

    def add(self, folder: str, names: list[str]) -> None:
        """Append files of one folder."""
        if names:
            self._runs.append((folder, "\0".join(names)))
            self._length += len(names)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        for folder, names in self._runs:
            start = os.path.join(folder, "")
            for name in names.split("\0"):
                yield start + name

    def sort(self, root: str) -> None:
        """Sort folders below `root` by their paths, with "/" between the parts on every system.

        No path may belong between two names that were added together.
        """

        def first_path(run: tuple[str, str]) -> str:
            path = os.path.relpath(os.path.join(run[0], run[1].partition("\0")[0]), root)
            return path.replace(os.sep, "/")

        self._runs.sort(key=first_path)

    def drop(self, places: Container[int]) -> None:
        """Remove the files at these places of the list."""
        kept = FileList(path for place, path in enumerate(self) if place not in places)
        self._runs, self._length = kept._runs, kept._length
