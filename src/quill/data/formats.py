"""One file to one text: plain text, JSON lines or Parquet, and a clear word when it is none of them.

A side path of the way text → tokens → model → training → generation → people: `corpus` finds the files, here they are
read. Text is UTF-8. A byte order mark is left out and Windows line ends become LF; whoever asks for any bytes gets
what is not text as it is, invalid bytes as surrogates (PEP 383), which the byte tokenizer turns back into those bytes.

Reference: RFC 3629 (UTF-8); https://jsonlines.org; https://parquet.apache.org.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quill.errors import CorpusError, MissingDependencyError

TEXT_COLUMN = "text"
RAW = "taken byte for byte: it is not UTF-8 text"

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class FileText:
    """The text of a file, the SHA-256 of its raw bytes, and what was changed in reading, in words."""

    text: str
    sha256: str
    changes: tuple[str, ...] = ()


def read_file(path: Path, *, any_bytes: bool = False) -> FileText:
    """Return the text of a file by its ending (.jsonl, .parquet, all else plain); CorpusError if it holds none.

    With `any_bytes`, a plain file that is not UTF-8 text is taken byte for byte instead of being refused.
    """
    raw = read_bytes(path)
    ending, changes = path.suffix.lower(), ()
    if ending == ".parquet":
        text = join_texts(_parquet_texts(raw, path))
    else:
        text, changes = _decode(raw, path, any_bytes=any_bytes and ending != ".jsonl")
        if ending == ".jsonl":
            text = join_texts(_json_texts(text, path))
    if "\r\n" in text and RAW not in changes:
        text, changes = text.replace("\r\n", "\n"), (*changes, "Windows line ends became LF")
    return FileText(text, hashlib.sha256(raw).hexdigest(), changes)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; CorpusError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}: check its permissions") from error


def join_texts(texts: Iterable[str]) -> str:
    """Return several texts as one, an empty line between them; a single text stays as it is."""
    parts = [text for text in texts if text]
    if len(parts) < 2:
        return "".join(parts)
    return "\n\n".join(part.strip("\r\n") for part in parts) + "\n"


def _decode(raw: bytes, path: Path, *, any_bytes: bool) -> tuple[str, tuple[str, ...]]:
    """Return a file's text and what was changed; what is not UTF-8 text is refused, or taken as it is."""
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode()
        if "\0" not in text:
            return text.removeprefix("\ufeff"), ("byte order mark left out",) if text.startswith("\ufeff") else ()
    if any_bytes:
        return raw.decode("utf-8", "surrogateescape"), (RAW,)
    raise CorpusError(f"{path} is {_what_it_is(raw)}, or use --tokenizer=byte, which accepts any bytes")


def _what_it_is(raw: bytes) -> str:
    """Return what bytes are that are not UTF-8 text, and how to make text of them."""
    encoding = next((name for mark, name in _OTHER_MARKS.items() if raw.startswith(mark)), None)
    zero = raw.find(b"\0")
    if encoding is None and zero >= 0 and _looks_like_utf16(raw):
        encoding = "UTF-16"
    if encoding:
        return f"{encoding} text: save it as UTF-8, in an editor or with 'iconv -f {encoding} -t UTF-8 OLD > NEW'"
    if zero >= 0:
        return f"binary, not text (NUL byte at offset {zero:,}): choose a text file"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (invalid byte 0x{raw[error.start]:02X} at offset {error.start:,}): save it as UTF-8"
    raise AssertionError("only called for bytes that are not text")


def _looks_like_utf16(raw: bytes) -> bool:
    """Western text in UTF-16 without a mark has a NUL in nearly every second byte, and hardly one elsewhere."""
    start = raw[:4096]
    zeros = sorted((start[::2].count(0), start[1::2].count(0)))
    return len(raw) % 2 == 0 and zeros[1] > 0.3 * len(start) and zeros[0] < 0.05 * len(start)


def _json_texts(text: str, path: Path) -> Iterable[str]:
    for number, line in enumerate(text.split("\n"), start=1):
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
            raise CorpusError(f'{where} is no JSON object: it must look like {{"{TEXT_COLUMN}": "…"}}')
        if TEXT_COLUMN not in record:
            raise CorpusError(_missing_column(where, record))
        value = record[TEXT_COLUMN]
        if not isinstance(value, str | None):
            raise CorpusError(f"{where}: column {TEXT_COLUMN!r} holds {type(value).__name__}, and must hold text")
        # JSON can spell half a character ("\\ud83d" alone), which no encoding can write: it becomes U+FFFD.
        yield (value or "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parquet_texts(raw: bytes, path: Path) -> Iterable[str]:
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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is no Parquet file, or damaged: {str(error).splitlines()[0]}") from error


def _missing_column(where: str, columns: Iterable[str]) -> str:
    found = ", ".join(map(repr, columns)) or "none"
    return f"{where} has no column {TEXT_COLUMN!r} (its columns: {found}): rename the one that holds the text"
