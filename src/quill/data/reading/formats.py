"""Read one file as text: plain text, JSON lines or Parquet, also compressed. Any other file is refused with the reason.

Text is UTF-8. A byte order mark is left out, and Windows line ends become LF. The byte tokenizer accepts any file:
bytes that are not UTF-8 become surrogates (PEP 383), which that tokenizer encodes as these bytes.
Files are read in pieces, so that progress can be shown and a signal takes effect between two pieces.

Reference: RFC 3629 (UTF-8).
"""

from __future__ import annotations

import codecs
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from quill.data.reading.compression import COMPRESSED, decompress, text_ending
from quill.data.reading.records import json_texts, lines_of, parquet_texts
from quill.errors import CorpusError

OnProgress = Callable[[str, float], None]
"""Called as on_progress(what, share): the current phase, in words, and its completed share, from 0 to 1."""

OnBytes = Callable[[int], None]
"""Called as on_bytes(count): `count` more bytes of a file have been read."""

RECORD_ENDINGS = (".jsonl", ".parquet")
"""Endings of files of records; other files are plain text."""

RAW = "taken byte for byte: it is not UTF-8 text"
LINE_ENDS = "Windows line ends became LF"

_PIECE_BYTES = 1 << 19

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_KINDS_OF_FILE = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True)
class FileText:
    """The text of a file, and the changes that were made to it, in words."""

    text: str
    changes: tuple[str, ...] = ()


class NotTextError(CorpusError):
    """The file is not UTF-8 text."""


def check_file(path: str | Path) -> os.stat_result:
    """Return the status of a regular file, else raise CorpusError: reading a pipe or a device might never end."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}: check the path and its permissions") from error
    if stat.S_ISREG(status.st_mode):
        return status
    for is_kind, name in _KINDS_OF_FILE.items():
        if is_kind(status.st_mode):
            raise CorpusError(f"{path} is {name}, not a file: save the text to a file first")
    return status


class FileStream:
    """The text of a file in pieces, by its ending: .jsonl, .parquet, else plain text; CorpusError if it holds none.

    With `raw`, a plain file is used byte for byte, whatever it holds. `on_bytes` is called with the size of each piece
    of the file after it was read. Reading begins at byte `start`, which is a `resume_at` of an earlier stream.
    """

    def __init__(self, path: Path, *, raw: bool = False, start: int = 0, on_bytes: OnBytes = _ignore) -> None:
        self.path, self._raw, self._start, self._on_bytes = path, raw, start, on_bytes
        self.changes: tuple[str, ...] = ()
        """what was changed in the pieces so far, in words"""
        self.resume_at: int | None = None
        """where another stream can begin to give the text after the last piece; None: not here"""
        self.utf8: bytes | None = None
        """the last piece in UTF-8, if the file has it so"""
        self._whole_at: int | None = None  # the end of the last piece, unless it ends in the middle of something
        self._unchanged: bytes | None = None  # the last piece of the file, unless its text was changed

    def __iter__(self) -> Iterator[str]:
        ending = text_ending(self.path)
        if ending == ".parquet":
            yield from join_stream(map(self._without_cr, _parquet_texts(self.path, self._on_bytes)))
        elif ending == ".jsonl":
            lines = lines_of(self._decoded())
            yield from join_stream(map(self._without_cr, json_texts(lines, self.path)))
        elif self._raw:
            self._note(RAW)
            decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
            yield from map(decoder.decode, _pieces_of(self.path, self._on_bytes))
            yield decoder.decode(b"", final=True)
        else:
            for text in self._decoded():
                self.resume_at, self.utf8 = self._whole_at, self._unchanged
                yield text

    def _note(self, change: str) -> None:
        if change not in self.changes:
            self.changes += (change,)

    def _without_cr(self, text: str) -> str:
        if "\r" in text and "\r\n" in text:  # the search for one character is twelve times as fast
            self._note(LINE_ENDS)
            text = text.replace("\r\n", "\n")
        return text

    def _decoded(self) -> Iterator[str]:
        """Yield the text of UTF-8 bytes; NotTextError says what the bytes are instead."""
        rest, cr = b"", ""  # bytes of an incomplete character, or a CR, at the end of a piece: kept for the next piece
        beginning, done = b"", self._start  # the first bytes, and how many bytes there were before this piece
        for piece in itertools.chain(_pieces_of(self.path, self._on_bytes, self._start), [b""]):
            beginning = beginning or piece[:4096]
            if (zero := piece.find(b"\0")) >= 0:
                raise _not_text(self.path, beginning, f"binary, not text (NUL byte at offset {done + zero:,})")
            raw, start = rest + piece, done - len(rest)
            try:
                decoded, used = codecs.utf_8_decode(raw, "strict", not piece)
            except UnicodeDecodeError as error:
                where = f"invalid byte 0x{raw[error.start]:02X} at offset {start + error.start:,}"
                raise _not_text(self.path, beginning, f"not UTF-8 text ({where})") from error
            rest, text = raw[used:], decoded
            if start == 0 and text.startswith("\ufeff"):
                text = text[1:]
                self._note("byte order mark left out")
            done += len(piece)
            text = cr + text
            cr = "\r" if piece and text.endswith("\r") else ""
            text = self._without_cr(text.removesuffix(cr))
            self._whole_at = None if cr or rest else done
            self._unchanged = raw[:used] if text is decoded else None
            if text:
                yield text


def read_file(path: Path, *, any_bytes: bool = False, on_bytes: OnBytes = _ignore) -> FileText:
    """Return the text of a file; CorpusError if it holds none.

    With `any_bytes`, a plain file that is not UTF-8 text is used byte for byte instead of being refused.
    """
    stream = FileStream(path, on_bytes=on_bytes)
    try:
        return FileText("".join(stream), stream.changes)
    except NotTextError:
        if not any_bytes or text_ending(path) in RECORD_ENDINGS:
            raise
    stream = FileStream(path, raw=True, on_bytes=on_bytes)
    return FileText("".join(stream), stream.changes)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file; CorpusError if it cannot be read."""
    return b"".join(_pieces_of(path))


def join_texts(texts: Iterable[str]) -> str:
    """Return several texts as one, with an empty line between them; a single text is returned unchanged."""
    parts = [text for text in texts if text]
    if len(parts) < 2:
        return "".join(parts)
    return "\n\n".join(part.strip("\r\n") for part in parts) + "\n"


def join_stream(texts: Iterable[str]) -> Iterator[str]:
    """Yield what `join_texts` returns, text by text."""
    parts = (text for text in texts if text)
    first, second = next(parts, ""), next(parts, "")
    if not second:
        yield first
        return
    yield first.strip("\r\n")
    for part in itertools.chain([second], parts):
        yield "\n\n" + part.strip("\r\n")
    yield "\n"


def _pieces_of(path: Path, on_bytes: OnBytes = _ignore, start: int = 0) -> Iterator[bytes]:
    """Yield the contents of a file from byte `start`, decompressed if it is compressed."""
    with _open(path) as file:
        try:
            if path.suffix.lower() in COMPRESSED:
                pieces = _skip(decompress(path, file.read), start)
            else:
                file.seek(start)
                pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
            read = file.tell()
            for piece in pieces:
                if piece:
                    yield piece
                on_bytes(file.tell() - read)
                read = file.tell()
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror}: check the disk") from error


def _parquet_texts(path: Path, on_bytes: OnBytes) -> Iterator[str]:
    if path.suffix.lower() in COMPRESSED:
        raise CorpusError(f"{path} is a compressed Parquet file: decompress it first (Parquet compresses by itself)")
    with _open(path) as file:
        yield from parquet_texts(file, path, on_bytes)


def _open(path: Path) -> FileIO:
    check_file(path)
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}: check its permissions") from error


def _skip(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Yield the pieces without their first `count` bytes."""
    for piece in pieces:
        yield piece[count:]
        count = max(0, count - len(piece))


def _not_text(path: Path, start: bytes, what: str) -> NotTextError:
    """Return the error for a file that begins with these bytes, with advice on how to convert it, if it is known."""
    encoding = next((name for mark, name in _OTHER_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and "NUL" in what and _looks_like_utf16(start):
        encoding = "UTF-16"
    if encoding:
        what = f"{encoding} text: save it as UTF-8, in an editor or with 'iconv -f {encoding} -t UTF-8 OLD > NEW'"
    else:
        what += ": choose a text file" if "NUL" in what else ": save it as UTF-8"
    return NotTextError(f"{path} is {what}, or use the byte tokenizer (tokenizer=byte), which accepts any bytes")


def _looks_like_utf16(start: bytes) -> bool:
    """Return whether NUL bytes occur as in Western UTF-16 without a mark: nearly every second byte, few elsewhere."""
    zeros = sorted((start[::2].count(0), start[1::2].count(0)))
    return len(start) % 2 == 0 and zeros[1] > 0.3 * len(start) and zeros[0] < 0.05 * len(start)
