"""Tokens on disk.

The second step on the way text → tokens → model → training → generation → people. Preparing a corpus writes a folder
of three files, `train.bin`, `val.bin` and `dataset.json`, whole or not at all. The first 90 % of the characters train,
the rest validates. Batches are cut from them in windows.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quill.data.corpus import SHAKESPEARE, Corpus, CorpusNotFoundError, find_corpus, name_of
from quill.errors import CorpusError
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import build_tokenizer, check_tokenizer, tokenizer_from_json

FORMAT = 1  # raised whenever the same text would give other files
_SLICE_CHARACTERS = 1 << 22
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Dataset:
    """A corpus as tokens on disk: `train` and `val` are read-only memory maps of the tokenizer's dtype."""

    name: str
    folder: Path
    source: str
    sha256: str
    tokenizer: Tokenizer
    train: np.memmap
    val: np.memmap
    train_characters: int
    val_characters: int
    note: str = ""


def prepare_dataset(
    dataset: str,
    *,
    tokenizer: str = "char",
    data_dir: str | Path = "data",
    corpus: Corpus | None = None,
    force: bool = False,
) -> Dataset:
    """Return the dataset of a corpus, written to `data_dir/<name>/<tokenizer>/` unless it is there already.

    What is there is used when it came from the same text, or when the text cannot be found any more; `force` writes
    it anew. CorpusError for a text that is missing or cannot be used, and when the files cannot be written.
    """
    check_tokenizer(tokenizer)
    folder = Path(data_dir) / (corpus.name if corpus else name_of(dataset)) / tokenizer
    there = None if force else _open_if_whole(folder)
    if corpus is None:
        if there and dataset == "shakespeare" and there.sha256 == SHAKESPEARE.sha256:
            return there  # this text never changes, so there is no need to look for it again
        try:
            corpus = find_corpus(dataset, tokenizer=tokenizer)
        except CorpusNotFoundError:
            if there is None:
                raise
            return replace(there, note=f"{there.note}; the text is not there any more, its prepared tokens are used")
    if there and there.sha256 == corpus.sha256:
        return replace(there, note=corpus.note)
    there = None  # Windows moves no folder whose files are mapped
    _write(corpus, tokenizer, folder, force=force)
    return open_dataset(folder)


def open_dataset(folder: str | Path) -> Dataset:
    """Return the dataset in a folder; CorpusError if there is none or a byte of it is missing or altered."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "dataset.json").read_text("utf-8"))
        if about["format"] != FORMAT:
            raise CorpusError(f"{folder} has format {about['format']}, this Quill reads {FORMAT}: prepare it anew")
        tokenizer = tokenizer_from_json(about["tokenizer"])
        train = _map(folder / "train.bin", about["train"], tokenizer.dtype)
        val = _map(folder / "val.bin", about["val"], tokenizer.dtype)
        facts = {key: str(about[key]) for key in ("name", "source", "sha256", "note")}
        characters = int(about["train"]["characters"]), int(about["val"]["characters"])
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise CorpusError(f"{folder} is no prepared dataset, it has no {missing}: run quill prepare") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{folder} is damaged ({error}): delete the folder and prepare it anew") from error
    return Dataset(
        **facts,
        folder=folder,
        tokenizer=tokenizer,
        train=train,
        val=val,
        train_characters=characters[0],
        val_characters=characters[1],
    )


def _open_if_whole(folder: Path) -> Dataset | None:
    try:
        return open_dataset(folder)
    except CorpusError:
        return None


def _holds(folder: Path, corpus: Corpus) -> bool:
    there = _open_if_whole(folder)
    return there is not None and there.sha256 == corpus.sha256


def _map(path: Path, about: dict[str, Any], dtype: np.dtype) -> np.memmap:
    """Return a file's tokens; ValueError unless size and SHA-256 are those that were written."""
    stored = dtype.newbyteorder("<")
    expected = int(about["tokens"]) * stored.itemsize
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path.name} has {size:,} bytes instead of {expected:,}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
            raise ValueError(f"{path.name} was altered: its SHA-256 is another")
    return np.memmap(path, dtype=stored, mode="r")


def _write(corpus: Corpus, kind: str, folder: Path, *, force: bool) -> None:
    text = corpus.text
    if len(text) < 2:
        raise CorpusError(f"{corpus.source} has {len(text)} character: choose a text of a few thousand or more")
    tokenizer = build_tokenizer(kind, text)
    cut = len(text) * 9 // 10
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        about = {
            "format": FORMAT,
            "name": corpus.name,
            "source": corpus.source,
            "sha256": corpus.sha256,
            "note": corpus.note,
            "tokenizer": tokenizer.to_json(),
            "dtype": tokenizer.dtype.name,
            "train": _write_split(temporary / "train.bin", text, 0, cut, tokenizer),
            "val": _write_split(temporary / "val.bin", text, cut, len(text), tokenizer),
        }
        (temporary / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if force or not _holds(folder, corpus):  # another process may have been faster with the same text
            _move(temporary, folder)
    except OSError as error:
        if force or not _holds(folder, corpus):
            raise CorpusError(_why_not_written(error, folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # only succeeds where nothing was written


def _write_split(path: Path, text: str, start: int, end: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode text[start:end] into a file, a slice at a time to bound memory, and return what `_map` checks."""
    stored = tokenizer.dtype.newbyteorder("<")
    count, digest = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for first in range(start, end, _SLICE_CHARACTERS):
            tokens = tokenizer.encode(text[first : min(first + _SLICE_CHARACTERS, end)], compact=True)
            raw = tokens.astype(stored, copy=False).tobytes()
            file.write(raw)
            digest.update(raw)
            count += len(tokens)
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only here
    return {"tokens": count, "characters": end - start, "sha256": digest.hexdigest()}


def _move(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of the old one, which comes back if that fails."""
    old = new.with_name(f"{new.name}-old")
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _why_not_written(error: OSError, folder: Path) -> str:
    if error.errno in _NO_SPACE:
        return f"no space left for the tokens in {folder}: free some, or use --data_dir=… on another disk"
    return f"the tokens cannot be written to {folder}: {error.strerror}: use another --data_dir=…"
