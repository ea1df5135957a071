"""Find the text to train on: a corpus with a name, or any text of the user's.

Three corpora have names: `shakespeare` (Tiny Shakespeare, 1.1 MB: from QUILL_DATA_DIR, the cache, or downloaded),
`tinystories` (local files) and `pydoc` (the help text inside every Python, which needs no network). Everything else is
a path: a file, a folder or a glob. Several names and paths in a list are one corpus, in the order of the list.

Reference: https://github.com/karpathy/char-rnn (Tiny Shakespeare); Eldan & Li, "TinyStories" (arXiv 2305.07759).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quill.data.download import RemoteFile
from quill.data.formats import OnProgress, join_texts, read_bytes
from quill.data.reader import Reader
from quill.data.text_files import CorpusNotFoundError, find_files
from quill.errors import CorpusError
from quill.files import cache_folder, expand_home, write_atomically
from quill.validation import show

NAMES = ("shakespeare", "tinystories", "pydoc")

SHAKESPEARE = RemoteFile(
    name="tinyshakespeare.txt",
    address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)

PathLike = str | os.PathLike[str]

_SLICE = 1 << 22  # characters


@dataclass(frozen=True)
class Corpus:
    """A text to train on. Its `sha256` is that of the text, whatever files it came from."""

    name: str
    """safe as the name of a folder"""
    source: str
    text: str
    sha256: str
    note: str
    """which text this is, where it comes from and what was changed or left out, in a line"""
    files: int = 1
    title: str = ""
    """what messages call it: the path as the user gave it, or the name of a named corpus"""

    @classmethod
    def from_text(cls, text: str, *, name: str = "text", on_progress: OnProgress = lambda what, share: None) -> Corpus:
        """Return a corpus of a given text, unchanged; CorpusError if it is empty.

        `name` and the text's digest are the name of its folder.
        """
        if not isinstance(text, str):
            raise CorpusError(f"text={show(text)} cannot be used: it must be a str, not {type(text).__name__}")
        _require_text(text, f"the text {name!r}")
        digest = _digest(text, on_progress)
        note = f"{name}, {len(text):,} characters"
        return cls(f"{_folder_name(name)}-{digest[:8]}", name, text, digest, note, title=name)


def find_corpus(
    dataset: PathLike | Sequence[PathLike],
    *,
    tokenizer: str = "char",
    download_seconds: float = 10.0,
    offline: bool = False,
    on_progress: OnProgress = lambda what, share: None,
) -> Corpus:
    """Return the corpus of a name, a path or several; CorpusError says what is wrong with it and what to do.

    The byte tokenizer accepts any bytes, so with `tokenizer="byte"` a file that is not UTF-8 text is used unchanged.
    A download takes at most `download_seconds` in all; `offline` forbids it.
    """
    paths = paths_of(dataset)
    seconds = 0.0 if offline else download_seconds
    if len(paths) == 1 and (corpus := _named(paths[0], seconds, on_progress)):
        return corpus
    return _read_corpus(paths, seconds, any_bytes=tokenizer == "byte", on_progress=on_progress)


def find_demo_corpus() -> Corpus:
    """Return Tiny Shakespeare if it is available, else `pydoc`; the note says which and why."""
    try:
        return find_corpus("shakespeare")
    except CorpusNotFoundError as error:
        corpus = _pydoc()
        return replace(corpus, note=f"{corpus.note}; {error.reason}")


def paths_of(dataset: PathLike | Sequence[PathLike]) -> tuple[str, ...]:
    """Return the names and paths of a dataset as strings; CorpusError if there is none, or one is not a path."""
    given = [dataset] if isinstance(dataset, str | os.PathLike) else dataset
    if not isinstance(given, list | tuple) or not all(isinstance(each, str | os.PathLike) for each in given):
        raise CorpusError(
            f"dataset={show(dataset)} cannot be used: it must be {', '.join(NAMES)}, a path or a list of paths"
        )
    paths = tuple(os.fspath(each) for each in given)
    if not paths or not all(isinstance(path, str) and path.strip() for path in paths):
        raise CorpusError(f"dataset={show(dataset)} names nothing: use {', '.join(NAMES)}, or the path of a text")
    return paths


def title_of(dataset: PathLike | Sequence[PathLike]) -> str:
    """Return what messages call a dataset: the path as the user gave it, or the first of several."""
    first, *others = paths_of(dataset)
    first = first if len(first) <= 80 else f"…{first[-79:]}"
    return f"{first} and {len(others)} more" if others else first


def name_of(dataset: PathLike | Sequence[PathLike]) -> str:
    """Return the folder name for a dataset: the name of a named corpus, else the stem and a digest of the whole path.

    The digest distinguishes two files `input.txt`, and a user's `pydoc.txt` from the corpus `pydoc`.
    """
    first, *others = paths_of(dataset)
    if not others and first in NAMES:
        return first
    whole = [path if path in NAMES else os.path.abspath(expand_home(path)) for path in (first, *others)]
    digest = hashlib.sha256("\n".join(whole).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem = _folder_name(Path(whole[0]).stem)
    return f"{stem}-and-{len(others)}-more-{digest}" if others else f"{stem}-{digest}"


def _folder_name(text: str) -> str:
    """Return the text as a name that every file system accepts."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:40] or "text"


def _named(name: str, download_seconds: float, on_progress: OnProgress) -> Corpus | None:
    if name == "shakespeare":
        return _shakespeare(download_seconds, on_progress)
    return _pydoc() if name == "pydoc" else None


def _shakespeare(download_seconds: float, on_progress: OnProgress) -> Corpus:
    data_dir = os.environ.get("QUILL_DATA_DIR")
    cached = cache_folder() / SHAKESPEARE.name
    advice = f"put {SHAKESPEARE.name} into a folder and name that in QUILL_DATA_DIR, or use dataset=pydoc"
    if data_dir and (path := expand_home(data_dir) / SHAKESPEARE.name).is_file():
        raw = read_bytes(path)
        if not SHAKESPEARE.is_same(raw):
            raise CorpusNotFoundError(
                f"{path} is not Tiny Shakespeare (its SHA-256 is not {SHAKESPEARE.sha256[:12]}…)",
                f"replace it or remove it, or train on it as your own text with dataset={path}",
            )
        return _tiny_shakespeare(raw, str(path), "from QUILL_DATA_DIR")
    if cached.is_file() and SHAKESPEARE.is_same(raw := read_bytes(cached)):
        return _tiny_shakespeare(raw, str(cached), "from the cache")
    folder = f"in QUILL_DATA_DIR ({data_dir})" if data_dir else "in QUILL_DATA_DIR (not set)"
    reason = f"Tiny Shakespeare is neither {folder} nor in the cache ({cached.parent})"
    if download_seconds <= 0:
        raise CorpusNotFoundError(f"{reason}, and downloading is off", advice)
    try:
        raw = SHAKESPEARE.fetch(download_seconds, lambda share: on_progress("downloading Tiny Shakespeare", share))
    except CorpusError as error:
        raise CorpusNotFoundError(f"{reason}, and {SHAKESPEARE.address} failed ({error})", advice) from error
    try:
        write_atomically(cached, raw)
    except OSError as error:  # the text was downloaded: a cache that cannot be written must not stop the run
        return _tiny_shakespeare(raw, SHAKESPEARE.address, f"downloaded, not kept in the cache ({error.strerror})")
    return _tiny_shakespeare(raw, SHAKESPEARE.address, "downloaded")


def _tiny_shakespeare(raw: bytes, source: str, how: str) -> Corpus:
    note = f"Tiny Shakespeare, {how}"
    return Corpus("shakespeare", source, raw.decode(), SHAKESPEARE.sha256, note, title="shakespeare")


def _pydoc() -> Corpus:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some systems strip their Python
        raise CorpusNotFoundError("this Python comes without pydoc_data", "use a text file: dataset=PATH") from error
    text = join_texts(topics[topic] for topic in sorted(topics))
    note = f"Python's own help text ({len(topics)} topics, built in)"
    return Corpus("pydoc", "built in", text, hashlib.sha256(text.encode()).hexdigest(), note, title="pydoc")


def _tinystories() -> str:
    folders = [expand_home(os.environ["QUILL_DATA_DIR"])] if os.environ.get("QUILL_DATA_DIR") else []
    for folder in (*folders, cache_folder()):
        if (folder / "tinystories").is_dir():
            return str(folder / "tinystories")
        if any(folder.glob("TinyStories*")):
            return str(Path(glob.escape(str(folder))) / "TinyStories*")
    raise CorpusNotFoundError(
        f"TinyStories is neither in QUILL_DATA_DIR nor in the cache ({cache_folder()})",
        "download .txt or .parquet files of it from https://huggingface.co/datasets/roneneldan/TinyStories "
        "into a folder 'tinystories' inside the folder that QUILL_DATA_DIR names",
    )


def _read_corpus(
    paths: tuple[str, ...], download_seconds: float, *, any_bytes: bool, on_progress: OnProgress
) -> Corpus:
    """Return the texts of all paths as one corpus. All files are found and checked before the first is read."""
    named = {path: corpus for path in paths if (corpus := _named(path, download_seconds, on_progress))}
    found = {path: find_files(_resolve_name(path), NAMES) for path in paths if path not in named}
    reader = Reader([found[path] for path in found], any_bytes, on_progress)
    texts: list[str] = []
    for path in dict.fromkeys(paths):
        texts += [named[path].text] if path in named else reader.texts_of(found[path])
    title = title_of(paths)
    text = join_texts(texts)
    _require_text(text, "; ".join((title, *reader.notes())))
    count = sum(map(bool, texts))
    size = f"{len(text):,} characters" + (f" in {count} files" if count > 1 else "")
    note = "; ".join((f"{title}, {size}", *reader.notes()))
    source = ", ".join(map(_resolve_name, paths))[:1000]
    return Corpus(name_of(paths), source, text, _digest(text, on_progress), note, count, title)


def _resolve_name(path: str) -> str:
    """Return the path of the local TinyStories for that name, and any other path as it is."""
    return _tinystories() if path == "tinystories" else path


def _require_text(text: str, title: str) -> None:
    if not text or text.isspace():
        what = "holds nothing but white space" if text else "is empty"
        raise CorpusError(f"{title} {what}: choose a text of a few thousand characters or more")


def _digest(text: str, on_progress: OnProgress) -> str:
    """Return the SHA-256 of a text as UTF-8, with invalid bytes as they were in its file."""
    digest = hashlib.sha256()
    for start in range(0, len(text), _SLICE):
        try:
            digest.update(text[start : start + _SLICE].encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"the text has half a character (a lone surrogate, {error.object[error.start]!r}) at position "
                f"{start + error.start:,}: leave it out"
            ) from error
        on_progress("computing the SHA-256 of the text", min(1.0, (start + _SLICE) / len(text)))
    return digest.hexdigest()
