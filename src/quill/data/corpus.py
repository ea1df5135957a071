"""Find the text to train on: a corpus with a name, or anything of the user's that holds text.

The very start of the way text → tokens → model → training → generation → people. Three corpora have names:
`shakespeare` (Tiny Shakespeare, 1.1 MB: from QUILL_DATA_DIR, the cache, or downloaded), `tinystories` (local files) and
`pydoc` (the help text inside every Python: works with no network at all). Everything else is a path: a file, a
folder, a glob.

Reference: https://github.com/karpathy/char-rnn (Tiny Shakespeare); Eldan & Li, "TinyStories" (arXiv 2305.07759).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from quill.data.download import RemoteFile
from quill.data.formats import join_texts, read_bytes, read_file
from quill.errors import CorpusError
from quill.files import cache_folder, write_atomically
from quill.validation import nearest

NAMES = ("shakespeare", "tinystories", "pydoc")

FOLDER_ENDINGS = (".txt", ".md", ".jsonl", ".parquet")

SHAKESPEARE = RemoteFile(
    name="tinyshakespeare.txt",
    address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(frozen=True)
class Corpus:
    """A text to train on; `name` is safe as a folder name, `note` says in a line for people which text and why."""

    name: str
    source: str
    text: str
    sha256: str
    note: str
    files: int = 1


class CorpusNotFoundError(CorpusError):
    """The text is not where it was looked for; `reason` is the message without its advice."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}: {advice}")
        self.reason = reason


def find_corpus(
    dataset: str, *, tokenizer: str = "char", download_seconds: float = 10.0, offline: bool = False
) -> Corpus:
    """Return the corpus of this name or path; CorpusError says what is wrong with it and what to do.

    The byte tokenizer accepts any bytes, so with `tokenizer="byte"` files that are not UTF-8 text are taken as they
    are. A download takes at most `download_seconds`, all included; `offline` forbids it.
    """
    if dataset == "shakespeare":
        return _shakespeare(0.0 if offline else download_seconds)
    if dataset == "pydoc":
        return _pydoc()
    path = _tinystories() if dataset == "tinystories" else dataset
    return _read_corpus(dataset, path, any_bytes=tokenizer == "byte")


def find_demo_corpus() -> Corpus:
    """Return Tiny Shakespeare if it can be had, else `pydoc`; the note says which and why."""
    try:
        return find_corpus("shakespeare")
    except CorpusNotFoundError as error:
        corpus = _pydoc()
        return replace(corpus, note=f"{corpus.note}; {error.reason}")


def name_of(dataset: str) -> str:
    """Return the folder name for a dataset: its own if it has one, else its stem and a digest of its whole path.

    The digest keeps two `input.txt` apart, and a user's `pydoc.txt` from the corpus `pydoc`.
    """
    if dataset in NAMES:
        return dataset
    path = os.path.abspath(os.path.expanduser(dataset))
    stem = re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.")[:40]
    return f"{stem or 'text'}-{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _shakespeare(download_seconds: float) -> Corpus:
    data_dir = os.environ.get("QUILL_DATA_DIR")
    cached = cache_folder() / SHAKESPEARE.name
    advice = f"put {SHAKESPEARE.name} into a folder and name that in QUILL_DATA_DIR, or use --dataset=pydoc"
    if data_dir and (path := Path(data_dir) / SHAKESPEARE.name).is_file():
        raw = read_bytes(path)
        if not SHAKESPEARE.is_same(raw):
            raise CorpusNotFoundError(
                f"{path} is not Tiny Shakespeare (its SHA-256 is not {SHAKESPEARE.sha256[:12]}…)",
                f"replace it or remove it, or train on it as your own text with --dataset={path}",
            )
        return _tiny_shakespeare(raw, str(path), "from QUILL_DATA_DIR")
    if cached.is_file() and SHAKESPEARE.is_same(raw := read_bytes(cached)):
        return _tiny_shakespeare(raw, str(cached), "from the cache")
    looked = f"in QUILL_DATA_DIR ({data_dir})" if data_dir else "in QUILL_DATA_DIR (not set)"
    reason = f"Tiny Shakespeare is neither {looked} nor in the cache ({cached.parent})"
    if download_seconds <= 0:
        raise CorpusNotFoundError(f"{reason}, and downloading is off", advice)
    try:
        raw = SHAKESPEARE.fetch(download_seconds)
    except CorpusError as error:
        raise CorpusNotFoundError(f"{reason}, and {SHAKESPEARE.address} failed ({error})", advice) from error
    try:
        write_atomically(cached, raw)
    except OSError as error:  # a cache that cannot be written must not stop anyone who has the text already
        return _tiny_shakespeare(raw, SHAKESPEARE.address, f"downloaded, not kept in the cache ({error.strerror})")
    return _tiny_shakespeare(raw, SHAKESPEARE.address, "downloaded")


def _tiny_shakespeare(raw: bytes, source: str, how: str) -> Corpus:
    return Corpus("shakespeare", source, raw.decode(), SHAKESPEARE.sha256, f"Tiny Shakespeare, {how}")


def _pydoc() -> Corpus:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some systems strip their Python
        raise CorpusNotFoundError("this Python comes without pydoc_data", "use a text file: --dataset=PATH") from error
    text = join_texts(topics[topic] for topic in sorted(topics))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus("pydoc", "built in", text, digest, f"Python's own help text ({len(topics)} topics, built in)")


def _tinystories() -> str:
    folders = [Path(os.environ["QUILL_DATA_DIR"])] if os.environ.get("QUILL_DATA_DIR") else []
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


def _read_corpus(dataset: str, path: str, *, any_bytes: bool) -> Corpus:
    paths = _files_of(path)
    files = [file for found in paths if (file := read_file(found, any_bytes=any_bytes)).text]
    text = join_texts(file.text for file in files)
    if not text or text.isspace():
        what = "holds nothing but white space" if text else "is empty"
        raise CorpusError(f"{path} {what}: choose a text of a few thousand characters or more")
    digest = files[0].sha256 if len(paths) == 1 else _digest_of_digests(file.sha256 for file in files)
    changes = sorted({change for file in files for change in file.changes})
    size = f"{len(text):,} characters" + (f" in {len(files)} files" if len(files) > 1 else "")
    return Corpus(name_of(dataset), path, text, digest, "; ".join((f"{path}, {size}", *changes)), len(files))


def _digest_of_digests(digests: Iterator[str]) -> str:
    # Hashing the contents in a row would not notice text moving from one file into the next.
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files_of(dataset: str) -> list[Path]:
    """Return the files behind a path, a folder or a glob, in an order that does not depend on the machine."""
    if not dataset:
        raise CorpusError(f"dataset='' names nothing: use {', '.join(NAMES)}, or the path of a text")
    path = Path(dataset).expanduser()
    try:
        if path.is_dir():
            return _files_in(path)
        if path.exists():
            return [path]
        if any(sign in dataset for sign in "*?["):
            matches = sorted(Path(match) for match in glob.iglob(str(path), recursive=True))
            if files := [match for match in matches if match.is_file()]:
                return files
            raise CorpusNotFoundError(f"no file matches {dataset!r}", "check the pattern and the folder it starts from")
    except OSError as error:
        raise CorpusError(f"{dataset!r} cannot be looked up: {error.strerror}: check the path") from error
    raise CorpusNotFoundError(
        f"dataset={dataset!r} is neither a corpus that Quill knows nor a file{nearest(dataset, _candidates(path))}",
        f"use {', '.join(NAMES)}, or the path of a text file, a folder or a glob",
    )


def _files_in(folder: Path) -> list[Path]:
    """Return the text files in a folder and the folders below it, hidden ones left out."""
    found, others = [], Counter[str]()
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in FOLDER_ENDINGS:
                found.append(path)
            else:
                others[path.suffix or path.name] += 1
    if not found:
        there = ", ".join(f"{count} {ending}" for ending, count in others.most_common(3)) or "nothing at all"
        raise CorpusError(
            f"folder {folder} has no {', '.join(FOLDER_ENDINGS)} file (it has {there}): put texts there, or name files "
            f"of another ending with a glob such as '{folder}/**/*.rst'"
        )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _refuse(error: OSError) -> None:
    raise error  # a folder that may not be read must not pass for an empty one


def _candidates(path: Path) -> list[str]:
    """Return what a mistyped dataset may have meant: the named corpora and the files beside it."""
    try:
        beside = [str(found) for found in islice(path.parent.iterdir(), 1000)]
    except OSError:
        beside = []
    return [*NAMES, *beside]
