"""Prepare a corpus that may be larger than memory: piece by piece, and resumed where a killed process stopped.

The files are read into one file of UTF-8, `text`, in a hidden folder beside the final one, because the vocabulary and
the place of the cut between the splits are known only at the end. Then slices of `text` are encoded. Files are written
and hashed by threads; what holds the GIL, such as decoding, is done by one thread, because several would wait for
each other. Now and then all files are flushed, and `progress.json` says up to where they are whole; what follows is cut
off by the next process. The token files are those that `write_tokens` writes for the same text.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quill.data.reading.compression import COMPRESSED
from quill.data.reading.formats import FileStream, NotTextError, OnProgress
from quill.data.sources import Part, Sources
from quill.data.spool import DamagedError, HashedFile, Spool, start_of_last, utf8_slices
from quill.data.token_files import alone_in, publish_tokens, why_not_written
from quill.errors import CorpusError
from quill.files import write_atomically
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import build_tokenizer

LARGE_TEXT = 1 << 24
"""Texts of more than this many bytes are prepared here."""

_SAVE_BYTES = 1 << 28  # that are written between two saves of the progress
_SMALL_FILE = 1 << 22  # bytes; such files are read in one piece
_PROGRESS = "progress.json"


def prepare_large(
    sources: Sources,
    tokenizer: str | Tokenizer,
    folder: Path,
    *,
    is_done: Callable[[], bool],
    force: bool,
    on_progress: OnProgress,
) -> None:
    """Write the folder of a corpus's tokens; continue what a killed process began, unless `force` is given.

    `is_done` says whether another process has finished the work meanwhile. An interrupt leaves what can be continued.
    CorpusError and TokenizerError as `prepare_dataset`; they leave nothing.
    """
    draft = folder.with_name(f".{folder.name}.unfinished")
    try:
        with alone_in(draft, on_progress), _removing(draft):
            if is_done():
                return
            work = _Preparation(sources, tokenizer, draft, on_progress)
            if force:
                work.start_over()
            try:
                work.write(folder, is_done)
            except DamagedError:
                work.start_over()
                work.write(folder, is_done)
    except OSError as error:
        raise CorpusError(why_not_written(error, folder)) from error
    finally:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # only succeeds if it is empty


@contextlib.contextmanager
def _removing(draft: Path) -> Iterator[None]:
    """Remove the folder after a block, unless an interrupt ends the block and the work can be continued."""
    keep = False
    try:
        yield
    except Exception:
        raise
    except BaseException:
        keep = (draft / _PROGRESS).exists()
        raise
    finally:
        if not keep:
            shutil.rmtree(draft, ignore_errors=True)


class _Preparation:
    """The work in one folder, and how far it is."""

    def __init__(self, sources: Sources, tokenizer: str | Tokenizer, draft: Path, on_progress: OnProgress) -> None:
        self._sources, self._tokenizer, self._draft, self._on_progress = sources, tokenizer, draft, on_progress
        self._any_bytes = sources.reader.any_bytes
        self._identity = {"files": sources.digest, "tokenizer": draft.name}
        self._progress = self._load()
        self._saved = 0  # bytes of text or tokens that had been written at the last save

    def _load(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            progress = json.loads((self._draft / _PROGRESS).read_text("utf-8"))
            if isinstance(progress, dict) and progress.pop("identity", None) == self._identity:
                return progress
        return {}

    def _save(self, written: int, **progress: Any) -> None:
        self._progress, self._saved = progress, written
        write_atomically(self._draft / "progress.json", json.dumps({"identity": self._identity, **progress}) + "\n")

    def start_over(self) -> None:
        """Forget what an earlier process wrote."""
        (self._draft / _PROGRESS).unlink(missing_ok=True)
        self._progress = {}

    def write(self, folder: Path, is_done: Callable[[], bool]) -> None:
        """Write the tokens, and give them their final place; DamagedError if what was written earlier is damaged."""
        read = self._progress.get("read") or self._read()
        about = self._encode(read)
        publish_tokens(self._draft, folder, self._sources.facts(read) | about, is_done=is_done)

    # ---- reading

    def _read(self) -> dict[str, Any]:
        """Write the whole text into one file, and return what is known of it."""
        at = self._progress.get("reading", {})
        first, offset = int(at.get("part", 0)), int(at.get("offset", 0))
        self._sources.reader.restore(at.get("notes", {}))
        report = functools.partial(self._on_progress, "checking what was read before")
        collect = self._tokenizer == "char"
        with Spool(self._draft / "text", at.get("spool", {}), collect=collect, on_share=report) as spool:
            self._saved = spool.size
            for number, part in enumerate(self._sources.parts()):
                if number < first:
                    continue
                if not offset:
                    spool.joiner.begin()
                self._add(part, number, offset, spool)
                offset = 0
                if spool.size - self._saved >= _SAVE_BYTES:
                    self._save_reading(spool, number + 1, 0)
            read = spool.finish() | {"texts": spool.joiner.texts}
            self._sources.require_text(spool.characters, blank=spool.blank)
        read["notes"] = self._sources.reader.notes()
        self._save(0, read=read)
        return read

    def _save_reading(self, spool: Spool, part: int, offset: int) -> None:
        at = {"part": part, "offset": offset, "notes": self._sources.reader.state(), "spool": spool.state()}
        self._save(spool.size, reading=at)

    def _add(self, part: Part, number: int, offset: int, spool: Spool) -> None:
        several, reader = functools.partial(self._has_text_after, number), self._sources.reader
        if part.path is None:
            spool.add(part.text, several)
            return
        path = part.path
        if path.stat().st_size <= _SMALL_FILE and path.suffix.lower() not in COMPRESSED:
            if file := reader.read(path, optional=part.optional):
                spool.add(file.text, several)
            return
        start = None if offset else spool.mark()
        stream = FileStream(path, start=offset, on_bytes=reader.advance(path))
        try:
            self._add_stream(stream, number, spool, several)
        except NotTextError as error:
            if start is None:  # the beginning of the file was written by an earlier process
                raise DamagedError(path.name) from error
            spool.return_to(start)
            raw = reader.may_be_raw(path)
            if not raw:
                reader.leave_out(path, error, optional=part.optional)
            self._save_reading(spool, number if raw else number + 1, 0)  # an earlier save may be further than this
            if raw:
                self._add_stream(FileStream(path, raw=True), number, spool, several)

    def _add_stream(self, stream: FileStream, number: int, spool: Spool, several: Callable[[], bool]) -> None:
        for piece in stream:
            spool.add(piece, several, stream.utf8)
            if stream.resume_at is not None and spool.size - self._saved >= _SAVE_BYTES:
                self._sources.reader.note(stream.changes)
                self._save_reading(spool, number, stream.resume_at)
        self._sources.reader.note(stream.changes)

    def _has_text_after(self, number: int) -> bool:
        """Return whether a later part has any text."""
        for part in itertools.islice(self._sources.parts(), number + 1, None):
            if part.path is None and part.text:
                return True
            if part.path is not None:
                try:
                    if any(FileStream(part.path)):
                        return True
                except NotTextError:
                    if not part.optional or self._any_bytes:
                        return True
        return False

    # ---- encoding

    def _encode(self, read: dict[str, Any]) -> dict[str, Any]:
        """Write the tokens of both splits, and return their description."""
        tokenizer = build_tokenizer(self._tokenizer, read["vocabulary"])
        stored = tokenizer.dtype.newbyteorder("<")
        total, characters = int(read["bytes"]), int(read["characters"])
        cut = characters * 9 // 10
        text_path = self._draft / "text"
        if not text_path.is_file() or text_path.stat().st_size != total:
            raise DamagedError("text")
        at = self._progress.get("encoding") or {"bytes": 0, "train": 0, "val": 0}
        report = functools.partial(self._on_progress, "checking what was encoded before")
        with (
            open(text_path, "rb") as text,
            HashedFile(self._draft / "train.bin", int(at["train"]), report) as train,
            HashedFile(self._draft / "val.bin", int(at["val"]), report) as val,
        ):
            self._saved = train.size + val.size
            start, val_start = int(at["bytes"]), start_of_last(text, total, characters - cut)
            pieces = itertools.chain(
                utf8_slices(text, start, val_start), utf8_slices(text, max(start, val_start), total)
            )
            for raw, end in pieces:
                tokens = tokenizer.encode_utf8(raw).astype(stored, copy=False)
                (train if end <= val_start else val).write(tokens.tobytes())
                self._on_progress("encoding", end / total)
                if train.size + val.size - self._saved >= _SAVE_BYTES:
                    train.sync()
                    val.sync()
                    at = {"bytes": end, "train": train.size, "val": val.size}
                    self._save(train.size + val.size, read=read, encoding=at)
            train.sync()
            val.sync()
            return {
                "tokenizer": tokenizer.to_json(),
                "dtype": tokenizer.dtype.name,
                "train": {
                    "tokens": train.size // stored.itemsize,
                    "characters": cut,
                    "sha256": train.sha256(),
                },
                "val": {
                    "tokens": val.size // stored.itemsize,
                    "characters": characters - cut,
                    "sha256": val.sha256(),
                },
            }
