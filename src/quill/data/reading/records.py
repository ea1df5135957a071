"""The texts in files of records: JSON lines and Parquet, where each record has a column `text`.

Reference: https://jsonlines.org; https://parquet.apache.org.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from quill.errors import CorpusError, MissingDependencyError, first_line

TEXT_COLUMN = "text"


def json_texts(lines: Iterable[str], path: Path) -> Iterator[str]:
    """Yield the text of each line of a .jsonl file; CorpusError names the first line that holds none."""
    for number, line in enumerate(lines, start=1):
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


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in pieces, one by one."""
    rest: list[str] = []  # the beginning of a line whose end is in a later piece
    for piece in pieces:
        first, *lines = piece.split("\n")
        rest.append(first)
        if lines:
            yield "".join(rest)
            yield from lines[:-1]
            rest = lines[-1:]
    yield "".join(rest)


def parquet_texts(file: FileIO, path: Path, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a Parquet file; CorpusError if it has none or is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs pyarrow to be read: pip install 'quill-gpt[parquet]', or convert it to .jsonl or .txt"
        ) from error
    pa: Any = pyarrow
    try:
        with pa.parquet.ParquetFile(file) as table:
            size, schema = os.fstat(file.fileno()).st_size, table.schema_arrow
            if TEXT_COLUMN not in schema.names:
                raise CorpusError(_missing_column(str(path), schema.names))
            kind = schema.field(TEXT_COLUMN).type
            if kind not in (pa.string(), pa.large_string(), pa.string_view()):
                raise CorpusError(f"{path}: column {TEXT_COLUMN!r} holds {kind}, and must hold text")
            for batch in table.iter_batches(columns=[TEXT_COLUMN]):
                yield from (value or "" for value in batch.column(0).to_pylist())
                on_bytes(size * batch.num_rows // table.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not a Parquet file, or is damaged: {first_line(error)}") from error


def _missing_column(where: str, columns: Iterable[str]) -> str:
    names = [repr(name[:40]) for name in columns]
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{where} has no column {TEXT_COLUMN!r} (its columns: {found or 'none'}): rename the one that holds the text"
