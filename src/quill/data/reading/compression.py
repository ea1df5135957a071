"""Files compressed by gzip or Zstandard (`.gz`, `.zst`), decompressed piece by piece.

Reference: RFC 1952 (gzip); RFC 8878 (Zstandard). Both allow several compressed streams one behind the other.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quill.errors import CorpusError, MissingDependencyError

COMPRESSED = (".gz", ".zst")

_PIECE_BYTES = 1 << 16  # of compressed text, which can be a hundred times as much


def text_ending(path: Path) -> str:
    """Return the ending that says what is in a file, in lower case: ".jsonl" for `a.jsonl` and for `a.jsonl.gz`."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in COMPRESSED else ending


def decompress(path: Path, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the contents of a compressed file, whose bytes come from `read(count)`; CorpusError if it is damaged."""
    new, errors = _decompressor(path)
    pieces = iter(lambda: read(_PIECE_BYTES), b"")
    try:
        yield from _decompress(pieces, new)
    except (*errors, EOFError) as error:
        ended = isinstance(error, EOFError)
        reason = "it ends in the middle" if ended else "its contents are not what its ending says"
        raise CorpusError(f"{path} cannot be decompressed ({reason}): check the file, or download it again") from error


def _decompress(pieces: Iterable[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    stream, whole = new(), True
    for piece in pieces:
        while piece:
            if stream.eof:
                stream = new()
                if not (piece := piece.lstrip(b"\0")):  # padding at the end of a file
                    break
            yield stream.decompress(piece)
            piece, whole = stream.unused_data if stream.eof else b"", stream.eof
    if not whole:
        raise EOFError


def _decompressor(path: Path) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Return a function that makes a decompressor for one stream, and the errors that it raises."""
    if path.suffix.lower() == ".gz":
        return lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), (zlib.error,)
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14 or later
    except ImportError:
        pass
    else:
        return zstd.ZstdDecompressor, (zstd.ZstdError,)
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs zstandard to be read: pip install 'quill-gpt[zst]', or decompress it with 'zstd -d'"
        ) from error
    return lambda: zstandard.ZstdDecompressor().decompressobj(), (zstandard.ZstdError,)
