"""Read one file as text: plain text, JSON lines or Parquet. Any other file is refused with the reason.

Text is UTF-8. A byte order mark is left out, and Windows line ends become LF. The byte tokenizer accepts any file:
bytes that are not UTF-8 become surrogates (PEP 383), which that tokenizer encodes as these bytes.
Files are read in pieces, so that progress can be shown and a signal takes effect between two pieces.

Reference: RFC 3629 (UTF-8); https://jsonlines.org; https://parquet.apache.org.
"""

from __future__ import annotations

import codecs
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quill.errors import CorpusError, MissingDependencyError, first_line

OnProgress = Callable[[str, float], None]
"""Called as on_progress(what, share): the current phase, in words, and its completed share, from 0 to 1."""

OnBytes = Callable[[int], None]
"""Called as on_bytes(count): `count` more bytes of a file have been read."""

TEXT_COLUMN = "text"
RAW = "taken byte for byte: it is not UTF-8 text"
LINE_ENDS = "Windows line ends became LF"

_PIECE_BYTES = 1 << 20

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


def check_file(path: Path) -> os.stat_result:
    """Return the status of a regular file, else raise CorpusError: reading a pipe or a device might never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}: check the path and its permissions") from error
    for is_kind, name in _KINDS_OF_FILE.items():
        if is_kind(status.st_mode):
            raise CorpusError(f"{path} is {name}, not a file: save the text to a file first")
    return status


def read_file(path: Path, *, any_bytes: bool = False, on_bytes: OnBytes = _ignore) -> FileText:
    """Return the text of a file by its ending (.jsonl, .parquet, else plain text); CorpusError if it holds none.

    With `any_bytes`, a plain file that is not UTF-8 text is used byte for byte instead of being refused.
    `on_bytes` is called with the size of each piece of the file after it was read.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        texts = _LineEnds(_parquet_texts(read_bytes(path), path, on_bytes))
        return FileText(join_texts(texts), texts.changes)
    if ending == ".jsonl":
        text, changes = _decode(path, _pieces_of(path))
        texts = _LineEnds(_json_texts(text, path, on_bytes))
        return FileText(join_texts(texts), tuple(dict.fromkeys((*changes, *texts.changes))))
    try:
        return FileText(*_decode(path, _pieces_of(path, on_bytes)))
    except NotTextError:
        if not any_bytes:
            raise
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    pieces = [decoder.decode(piece) for piece in _pieces_of(path, on_bytes)]
    return FileText("".join((*pieces, decoder.decode(b"", final=True))), (RAW,))


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file; CorpusError if it cannot be read."""
    return b"".join(_pieces_of(path))


def join_texts(texts: Iterable[str]) -> str:
    """Return several texts as one, with an empty line between them; a single text is returned unchanged."""
    parts = [text for text in texts if text]
    if len(parts) < 2:
        return "".join(parts)
    return "\n\n".join(part.strip("\r\n") for part in parts) + "\n"


def _pieces_of(path: Path, on_bytes: OnBytes = _ignore) -> Iterator[bytes]:
    check_file(path)
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
                on_bytes(len(piece))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}: check its permissions") from error


def _decode(path: Path, pieces: Iterable[bytes]) -> tuple[str, tuple[str, ...]]:
    """Return the text of UTF-8 bytes and the changes made to it; NotTextError says what the bytes are instead."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    # Each piece is only checked; decoding all bytes at the end takes less memory than joining decoded pieces.
    raw, cr, converted = bytearray(), b"", False  # cr: a CR at the end of a piece, kept for the next piece
    start, done = b"", 0  # the first bytes, and how many bytes there were before this piece
    for piece in itertools.chain(pieces, [b""]):
        start = start or piece[:4096]
        if (zero := piece.find(b"\0")) >= 0:
            raise _not_text(path, start, f"binary, not text (NUL byte at offset {done + zero:,})")
        unfinished = len(decoder.getstate()[0])  # bytes of an incomplete character at the end of the previous piece
        try:
            if unfinished or not piece.isascii():
                decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            where = f"invalid byte 0x{error.object[error.start]:02X} at offset {done - unfinished + error.start:,}"
            raise _not_text(path, start, f"not UTF-8 text ({where})") from error
        done += len(piece)
        lines = cr + piece
        cr = b"\r" if piece.endswith(b"\r") else b""
        lines = lines.removesuffix(cr)
        converted = converted or b"\r\n" in lines
        raw += lines.replace(b"\r\n", b"\n")
    marked = raw.startswith(codecs.BOM_UTF8)
    if marked:
        del raw[: len(codecs.BOM_UTF8)]
    changes = {"byte order mark left out": marked, LINE_ENDS: converted}
    return raw.decode(), tuple(change for change, made in changes.items() if made)


class _LineEnds:
    """Yields texts with Windows line ends replaced by LF, and records whether there were any."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.changes = texts, ()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if "\r\n" in text:
                self.changes = (LINE_ENDS,)
            yield text.replace("\r\n", "\n")


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


def _json_texts(text: str, path: Path, on_bytes: OnBytes) -> Iterator[str]:
    for number, line in enumerate(_lines_of(text), start=1):
        on_bytes(len(line) + 1)  # characters instead of bytes: close enough for progress
        if not line.strip():
            continue
        where = f"{path} line {number:,}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{where} is not JSON: each line of a .jsonl file must be one JSON object") from error
        except RecursionError as error:
            raise CorpusError(f"{where} is nested too deeply for a record of text") from error
        if not isinstance(record, dict):
            raise CorpusError(f'{where} is not a JSON object: it must look like {{"{TEXT_COLUMN}": "…"}}')
        if TEXT_COLUMN not in record:
            raise CorpusError(_missing_column(where, record))
        value = record[TEXT_COLUMN]
        if not isinstance(value, str | None):
            raise CorpusError(f"{where}: column {TEXT_COLUMN!r} holds {type(value).__name__}, and must hold text")
        # JSON can contain half a character ("\\ud83d" alone), which cannot be encoded: it becomes U+FFFD.
        yield (value or "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _lines_of(text: str) -> Iterator[str]:
    """Yield the lines of a text one by one. Splitting a long text in one call would delay signals."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _parquet_texts(raw: bytes, path: Path, on_bytes: OnBytes) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs pyarrow to be read: pip install 'quill-gpt[parquet]', or convert it to .jsonl or .txt"
        ) from error
    pa: Any = pyarrow
    try:
        with pa.parquet.ParquetFile(pa.BufferReader(raw)) as file:
            schema = file.schema_arrow
            if TEXT_COLUMN not in schema.names:
                raise CorpusError(_missing_column(str(path), schema.names))
            kind = schema.field(TEXT_COLUMN).type
            if kind not in (pa.string(), pa.large_string(), pa.string_view()):
                raise CorpusError(f"{path}: column {TEXT_COLUMN!r} holds {kind}, and must hold text")
            for batch in file.iter_batches(columns=[TEXT_COLUMN]):
                yield from (value or "" for value in batch.column(0).to_pylist())
                on_bytes(len(raw) * batch.num_rows // file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not a Parquet file, or is damaged: {first_line(error)}") from error


def _missing_column(where: str, columns: Iterable[str]) -> str:
    names = [repr(name[:40]) for name in columns]
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{where} has no column {TEXT_COLUMN!r} (its columns: {found or 'none'}): rename the one that holds the text"
