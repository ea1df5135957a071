"""What a text to train on is: a corpus in memory, or the sources of one that were found and not read yet."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quill.data.mixture import find_mixture
from quill.data.reading.formats import OnProgress
from quill.data.reading.reader import Reader
from quill.data.reading.text_files import FoundFiles
from quill.errors import CorpusError
from quill.files import expand_home
from quill.validation import show

NAMES = ("shakespeare", "tinystories", "pydoc")

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
        if not text or text.isspace():
            _refuse_empty(f"the text {name!r}", blank=bool(text))
        digest = digest_of(text, on_progress)
        note = f"{name}, {len(text):,} characters"
        return cls(f"{_folder_name(name)}-{digest[:8]}", name, text, digest, note, title=name)


@dataclass(frozen=True)
class Part:
    """A text of a corpus: one at hand, or a file."""

    text: str = ""
    path: Path | None = None
    optional: bool = False
    """whether the file is left out if it is not text"""


@dataclass(frozen=True)
class Sources:
    """The named corpora and the files that a dataset stands for. The files were found, but not read."""

    paths: tuple[str, ...]
    named: dict[str, Corpus]
    found: dict[str, FoundFiles]
    places: tuple[str, ...]
    """where the sources are, in words"""
    reader: Reader

    @property
    def digest(self) -> str:
        """A digest of the names, and of the paths, sizes and times of the files."""
        named = "\n".join(f"{path} {corpus.sha256}" for path, corpus in self.named.items())
        return hashlib.sha256(f"{self.reader.digest} {named}".encode("utf-8", "surrogatepass")).hexdigest()

    def parts(self) -> Iterator[Part]:
        """Yield the texts of the corpus in their order."""
        for path in dict.fromkeys(self.paths):
            if path in self.named:
                yield Part(text=self.named[path].text)
            else:
                for file in self.found[path].paths:
                    yield Part(path=Path(file), optional=self.found[path].in_folder)

    def require_text(self, characters: int, *, blank: bool) -> None:
        """Raise CorpusError if the corpus has nothing but white space, or less than two characters."""
        if not characters or blank:
            _refuse_empty("; ".join((self.title, *self.reader.notes())), blank=bool(characters))
        require_two(characters, self.title)

    @property
    def title(self) -> str:
        """What messages call the corpus."""
        return title_of(self.paths)

    def facts(self, read: dict[str, Any]) -> dict[str, Any]:
        """Return name, title, source, sha256, note and files of the corpus, from what is known after reading it."""
        title, texts = self.title, read["texts"]
        size = f"{read['characters']:,} characters" + (f" in {texts:,} files" if texts > 1 else "")
        return {
            "name": name_of(self.paths),
            "title": title,
            "source": ", ".join(self.places)[:1000],
            "sha256": read["sha256"],
            "note": "; ".join((f"{title}, {size}", *read["notes"])),
            "files": self.digest,
        }


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
    if any(map(find_mixture, paths)):
        raise CorpusError(f"{show(dataset)} is a mixture, which only training and its evaluation take: name one text")
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


def require_two(characters: int, title: str) -> None:
    """Raise CorpusError unless there is a character for each split."""
    if characters < 2:
        raise CorpusError(f"{title} has {characters} character: choose a text of a few thousand or more")


def _refuse_empty(title: str, *, blank: bool) -> NoReturn:
    what = "holds nothing but white space" if blank else "is empty"
    raise CorpusError(f"{title} {what}: choose a text of a few thousand characters or more")


def digest_of(text: str, on_progress: OnProgress) -> str:
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
