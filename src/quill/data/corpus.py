"""Find the text to train on: a corpus with a name, or any text of the user's.

Three corpora have names: `shakespeare` (Tiny Shakespeare, 1.1 MB: from QUILL_DATA_DIR, the cache, or downloaded),
`tinystories` (2 GB: the same, but downloaded by the `datasets` library where that is installed) and `pydoc` (the help
text inside every Python, which needs no network). Everything else is a path: a file, a folder or a glob. Several names
and paths in a list are one corpus, in the order of the list.

Reference: https://github.com/karpathy/char-rnn (Tiny Shakespeare); Eldan & Li, "TinyStories" (arXiv 2305.07759).
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quill.data.download import RemoteFile
from quill.data.reading.formats import OnProgress, join_texts, read_bytes
from quill.data.reading.hub import REPOSITORY, fetch_tinystories
from quill.data.reading.reader import Reader
from quill.data.reading.text_files import CorpusNotFoundError, find_files
from quill.data.sources import NAMES, Corpus, PathLike, Sources, digest_of, paths_of
from quill.errors import CorpusError
from quill.files import cache_folder, expand_home, write_atomically

SHAKESPEARE = RemoteFile(
    name="tinyshakespeare.txt",
    address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


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
    found = find_sources(
        dataset, tokenizer=tokenizer, download_seconds=download_seconds, offline=offline, on_progress=on_progress
    )
    return read_sources(found, on_progress=on_progress)


def find_sources(
    dataset: PathLike | Sequence[PathLike],
    *,
    tokenizer: str = "char",
    download_seconds: float = 10.0,
    offline: bool = False,
    on_progress: OnProgress = lambda what, share: None,
) -> Sources:
    """Return the named corpora and the files of a dataset, all found and checked; see `find_corpus`."""
    paths = paths_of(dataset)
    seconds = 0.0 if offline else download_seconds
    named = {path: corpus for path in paths if (corpus := _named(path, seconds, on_progress))}
    resolved = {path: _tinystories(seconds, on_progress) if path == "tinystories" else path for path in paths}
    found = {path: find_files(resolved[path], NAMES, on_progress) for path in paths if path not in named}
    places = tuple(resolved[path] for path in paths)
    reader = Reader(list(found.values()), tokenizer == "byte", on_progress)
    return Sources(paths, named, found, places, reader)


def read_sources(sources: Sources, *, on_progress: OnProgress = lambda what, share: None) -> Corpus:
    """Return the texts of all sources as one corpus; CorpusError if there is none."""
    if len(sources.paths) == 1 and sources.named:
        return sources.named[sources.paths[0]]
    texts: list[str] = []
    for path in dict.fromkeys(sources.paths):
        texts += [sources.named[path].text] if path in sources.named else sources.reader.texts_of(sources.found[path])
    text = join_texts(texts)
    sources.require_text(len(text), blank=text.isspace())
    read = {"characters": len(text), "texts": sum(map(bool, texts)), "notes": sources.reader.notes()}
    facts = sources.facts(read | {"sha256": digest_of(text, on_progress)})
    del facts["files"]
    return Corpus(text=text, files=read["texts"], **facts)


def find_demo_corpus() -> Corpus:
    """Return Tiny Shakespeare if it is available, else `pydoc`; the note says which and why."""
    try:
        return find_corpus("shakespeare")
    except CorpusNotFoundError as error:
        corpus = _pydoc()
        return replace(corpus, note=f"{corpus.note}; {error.reason}")


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


def _tinystories(download_seconds: float, on_progress: OnProgress) -> str:
    """Return the path of TinyStories; it is downloaded if it is not here."""
    folders = [expand_home(os.environ["QUILL_DATA_DIR"])] if os.environ.get("QUILL_DATA_DIR") else []
    for folder in (*folders, cache_folder()):
        if (found := folder / "tinystories").is_dir() and not all(map(_is_prepared, found.iterdir())):
            return str(found)
        if any(folder.glob("TinyStories*")):
            return str(Path(glob.escape(str(folder))) / "TinyStories*")
    reason = f"TinyStories is neither in QUILL_DATA_DIR nor in the cache ({cache_folder()})"
    advice = (
        f"download .txt or .parquet files of it from https://huggingface.co/datasets/{REPOSITORY} into a folder "
        "'tinystories' inside the folder that QUILL_DATA_DIR names"
    )
    if download_seconds <= 0:
        raise CorpusNotFoundError(f"{reason}, and downloading is off", advice)
    folder = cache_folder() / "tinystories"
    try:
        fetch_tinystories(folder, download_seconds, on_progress)
    except CorpusError as error:
        raise CorpusNotFoundError(f"{reason}, and downloading it failed ({error})", advice) from error
    return str(folder)


def _is_prepared(path: Path) -> bool:
    """Return whether a path is a folder of prepared tokens, which may have the name of its corpus."""
    return path.name.startswith(".") or (path / "dataset.json").is_file()
