"""The text of many files as one file on disk, for a corpus that may be larger than memory.

`Spool` appends texts that arrive in pieces, joined as `join_texts` joins them, and keeps what must be known of the
whole: its SHA-256, its characters, and how many there are. Its state is a JSON object, from which a later process
continues.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quill.tokenizers.char import CharacterSet

_SYNC_BYTES = 1 << 26  # between two calls of fsync, so that no call takes seconds
_GATHERED_CHARACTERS = 1 << 18  # short texts are gathered to this length before they are written
_MOST_PENDING = 32  # calls that wait for the two threads, two for each piece
_SLICE_BYTES = 1 << 20  # of text that are encoded at a time


class DamagedError(Exception):
    """What an earlier process wrote cannot be continued."""


class HashedFile:
    """A file that is appended to, and the SHA-256 of its contents. One thread writes, another hashes.

    It keeps the first `keep` bytes of an existing file; DamagedError if there are fewer. `on_share` is called while
    they are read. Errors of the threads are raised by a later call.
    """

    def __init__(self, path: Path, keep: int = 0, on_share: Callable[[float], None] = lambda share: None) -> None:
        self.size, self._hash, self._unsynced = keep, hashlib.sha256(), 0
        self._pending: deque[Future[None]] = deque()
        try:
            self._file = open(path, "r+b" if keep else "wb")  # noqa: SIM115
        except FileNotFoundError as error:
            raise DamagedError(path.name) from error
        try:
            left = keep
            while left and (piece := self._file.read(min(left, 1 << 20))):
                self._hash.update(piece)
                left -= len(piece)
                on_share(1 - left / keep)
            if left:
                raise DamagedError(path.name)
            self._file.seek(keep)
            self._file.truncate()
        except BaseException:
            self._file.close()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"write {path.name}")
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix=f"hash {path.name}")

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):  # a full disk was reported already, or is by `sync`
            self._file.close()

    def write(self, raw: bytes) -> None:
        """Append bytes, some time later."""
        self.size += len(raw)
        self._pending.append(self._writer.submit(self._append, raw))
        self._pending.append(self._hasher.submit(self._hash.update, raw))
        while len(self._pending) > _MOST_PENDING:
            self._pending.popleft().result()

    def _append(self, raw: bytes) -> None:
        self._file.write(raw)
        self._unsynced += len(raw)
        if self._unsynced >= _SYNC_BYTES:  # some file systems report a full disk only here
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def _wait(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def sync(self) -> None:
        """Return when everything is on disk."""
        self._wait()
        self._sync()

    def sha256(self) -> str:
        """Return the SHA-256 of everything written."""
        self._wait()
        return self._hash.hexdigest()

    def mark(self) -> tuple[int, Any]:
        """Return a point to which `return_to` returns."""
        self._wait()
        return self.size, self._hash.copy()

    def return_to(self, mark: tuple[int, Any]) -> None:
        """Forget everything that was written after the mark."""
        self._wait()
        self.size, self._hash = mark[0], mark[1].copy()
        self._file.seek(self.size)
        self._file.truncate()


@dataclass
class Joiner:
    """Joins texts that arrive in pieces as `join_texts` does: line ends are held back until more text follows."""

    texts: int = 0
    """texts so far that are not empty"""
    held: str = ""
    begun: bool = False
    """whether the current text has had a piece"""
    at_start: bool = False
    """whether the current text has had nothing but line ends"""

    def begin(self) -> None:
        """Begin the next text."""
        self.begun = False

    def add(self, piece: str, several: Callable[[], bool]) -> str:
        """Return what can be written after this piece. `several` says whether another text is not empty."""
        if not piece:
            return ""
        before = ""
        if not self.begun:
            self.begun = self.at_start = True
            self.texts += 1
            if self.texts > 1:
                before, self.held = "\n\n", ""
        if self.at_start and piece[0] in "\r\n" and (self.texts > 1 or several()):
            piece = piece.lstrip("\r\n")
        self.at_start = self.at_start and not piece.strip("\r\n")
        whole = self.held + piece
        text = whole.rstrip("\r\n")
        self.held = whole[len(text) :]
        return before + text

    def end(self) -> str:
        """Return what follows the last text."""
        return self.held if self.texts == 1 else "\n" * (self.texts > 1)


class Spool:
    """A text on disk that is written in pieces; with `collect` its different characters are collected."""

    def __init__(self, path: Path, state: dict[str, Any], *, collect: bool, on_share: Callable[[float], None]) -> None:
        self.characters, self.blank = int(state.get("characters", 0)), bool(state.get("blank", True))
        self.joiner = Joiner(**state.get("joiner", {}))
        self._set = CharacterSet(state.get("vocabulary", "")) if collect else None
        self._gathered: list[tuple[str, bytes]] = []
        self._gathered_length = 0
        self._file = HashedFile(path, int(state.get("bytes", 0)), on_share)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    @property
    def size(self) -> int:
        """The bytes that were written."""
        return self._file.size

    def add(self, piece: str, several: Callable[[], bool], utf8: bytes | None = None) -> None:
        """Append a piece of the current text; `utf8` is the piece in UTF-8, where it is known."""
        text = self.joiner.add(piece, several)
        self._write(text, utf8 if text is piece else None)

    def _write(self, text: str, utf8: bytes | None = None) -> None:
        self._gathered.append((text, text.encode("utf-8", "surrogateescape") if utf8 is None else utf8))
        self._gathered_length += len(text)
        if self._gathered_length >= _GATHERED_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        text, raw = "".join(text for text, _ in self._gathered), b"".join(utf8 for _, utf8 in self._gathered)
        self._gathered, self._gathered_length = [], 0
        if text:
            self.characters += len(text)
            self.blank = self.blank and text.isspace()
            if self._set is not None:
                self._set.add(text, raw)
            self._file.write(raw)

    def state(self) -> dict[str, Any]:
        """Return the state of everything so far, which is on disk then."""
        self._flush()
        self._file.sync()
        return {
            "bytes": self.size,
            "characters": self.characters,
            "blank": self.blank,
            "joiner": vars(self.joiner).copy(),
            "vocabulary": self._set.characters if self._set is not None else "",
        }

    def mark(self) -> tuple[Any, ...]:
        """Return a point to which `return_to` returns."""
        self._flush()
        return self._file.mark(), self.characters, self.blank, copy.copy(self.joiner), copy.deepcopy(self._set)

    def return_to(self, mark: tuple[Any, ...]) -> None:
        """Forget everything that was added after the mark."""
        self._gathered, self._gathered_length = [], 0
        file, self.characters, self.blank, self.joiner, self._set = mark
        self._file.return_to(file)

    def finish(self) -> dict[str, Any]:
        """Write the end of the text; return the final state, with the text's `sha256`."""
        self._write(self.joiner.end())
        return self.state() | {"sha256": self._file.sha256()}


def start_of_last(file: BinaryIO, size: int, characters: int) -> int:
    """Return the byte at which the last characters of a file of UTF-8 begin; each invalid byte is a character."""
    end = size
    while end:
        start = max(0, end - _SLICE_BYTES)
        file.seek(start)
        raw = file.read(end - start)
        # At most three bytes belong to a character that begins before; they are counted with it.
        start += next((k for k in range(3) if not _continues(raw[k])), 3) if start else 0
        text = raw[start - end :].decode("utf-8", "surrogateescape")
        if len(text) >= characters:
            return end - len(text[len(text) - characters :].encode("utf-8", "surrogateescape"))
        characters, end = characters - len(text), start
    raise DamagedError("text")


def utf8_slices(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield (slice, its end) of the bytes from `start` to `end` of a file of UTF-8; no slice ends in a character."""
    while start < end:
        file.seek(start)
        raw = file.read(min(_SLICE_BYTES, end - start))
        if raw and start + len(raw) < end and raw[-1] >= 0x80:  # the last character is perhaps not whole
            begins = next((k for k in range(1, min(len(raw), 4) + 1) if not _continues(raw[-k])), 0)
            raw = raw[: len(raw) - begins]
        if not raw:
            raise DamagedError("text")
        start += len(raw)
        yield raw, start


def _continues(byte: int) -> bool:
    """Return whether a byte of UTF-8 continues a character."""
    return byte & 0xC0 == 0x80
