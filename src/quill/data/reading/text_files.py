"""Find the text files behind a path, a folder or a glob.

A folder is read with its subfolders, including links to folders. Hidden files, the folders of runs, prepared token
files, and files with an ending that is not known as text are left out, counted, and mentioned in a note.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from quill.data.reading.compression import COMPRESSED, text_ending
from quill.data.reading.file_list import FileList
from quill.errors import CorpusError
from quill.files import expand_home
from quill.validation import nearest

TEXT_ENDINGS = (".txt", ".md", ".jsonl", ".parquet")
"""Endings of texts, also with .gz or .zst behind them. In a folder, such a file that is not text is an error."""

PLAIN_ENDINGS = frozenset(
    {
        ".text", ".markdown", ".rst", ".adoc", ".org", ".tex", ".html", ".htm", ".log", ".srt", ".vtt",
        ".py", ".pyi", ".js", ".ts", ".jsx", ".tsx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs", ".java",
        ".kt", ".swift", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".scala", ".sh", ".sql", ".css",
    }
)  # fmt: skip
"""Endings of other plain text. In a folder, a file with one of these endings is skipped if it is not UTF-8 text."""

_RUN = {"config.yaml", "checkpoints"}
_RUN_ENTRIES = {*_RUN, "metrics.jsonl", "samples.txt", "loss.png", "film.safetensors", "last", "best", "tensorboard"}
_PREPARED = {"dataset.json", "train.bin", "val.bin"}
_TELLING = _RUN | _PREPARED
_PLURALS = {"run folder": "run folders", "file of a run": "files of runs"}


@dataclass
class FoundFiles:
    """Files in an order that is the same on every machine, and how many others were left out, by ending."""

    paths: FileList
    skipped: Counter[str] = field(default_factory=Counter)
    in_folder: bool = False
    """whether the files come from a folder, where those of PLAIN_ENDINGS may turn out not to be text"""


class CorpusNotFoundError(CorpusError):
    """The text was not found; `reason` is the message without its advice."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}: {advice}")
        self.reason = reason


def find_files(
    dataset: str, names: tuple[str, ...], on_progress: Callable[[str, float], None] = lambda what, share: None
) -> FoundFiles:
    """Return the files behind a path, a folder or a glob. CorpusError if there are none.

    `names` are the named corpora, which the message suggests for a mistyped path. `on_progress` is called for each
    folder, with a share of 0, because the number of folders is not known.
    """
    if not dataset:
        raise CorpusError(f"dataset='' names nothing: use {', '.join(names)}, or the path of a text")
    path = expand_home(dataset)
    if _is_a_text(dataset) and not os.path.exists(path):
        beginning = " ".join(dataset[:200].split())[:40]
        raise CorpusError(
            f"dataset={beginning!r}… is a text of {len(dataset):,} characters, not a path: give it as text=…"
        )
    try:
        if path.is_dir():
            return _files_in(path, on_progress)
        if path.exists():
            return FoundFiles(FileList([str(path)]))
        if any(sign in dataset for sign in "*?["):
            return _files_of_glob(path, dataset)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str | os.PathLike) else dataset
        raise CorpusError(f"{os.fspath(where)!r} cannot be looked up: {error.strerror}: check the path") from error
    raise CorpusNotFoundError(
        f"dataset={dataset!r} is neither a corpus that Quill knows nor a file"
        f"{nearest(dataset, [*names, *_files_beside(path)])}",
        f"use {', '.join(names)}, or the path of a text file, a folder or a glob",
    )


def describe_skipped(skipped: Counter[str], most: int = 4) -> str:
    """Return the most frequent endings with their counts, "3 .jpg, 1 .csv", and the number of other files."""
    shown = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))[:most]
    more = skipped.total() - sum(count for _, count in shown)
    words = [f"{count:,} {_PLURALS.get(ending, ending) if count > 1 else ending}" for ending, count in shown]
    return ", ".join([*words, *([f"{more:,} more"] if more else [])])


def _is_a_text(dataset: str) -> bool:
    """Return whether this must be a text that was given instead of its path."""
    parts = dataset.replace("\\", "/").split("/")
    return "\n" in dataset or len(dataset) > 1000 or max(map(len, parts)) > 255


def _files_in(folder: Path, on_progress: Callable[[str, float], None]) -> FoundFiles:
    """Return the text files in a folder and the folders below it."""
    paths, skipped = FileList(), Counter[str]()
    for below, files, folders in _walk(folder, skipped):
        texts = [name for name in files if _is_read(_ending(name))]
        if len(texts) < len(files):
            left_out = (name for name in files if not _is_read(_ending(name)))
            skipped.update(Path(name).suffix.lower() or "without an ending" for name in left_out)
        start = 0
        for path in sorted(f"{name}/" for name in folders):  # the files of a folder come between those around it
            end = bisect.bisect(texts, path, start)
            paths.add(str(below), texts[start:end])
            start = end
        paths.add(str(below), texts[start:] if start else texts)
        on_progress(f"listing {folder}: {len(paths):,} files", 0.0)
    if not paths:
        raise CorpusError(
            f"folder {folder} has no text files (it has {describe_skipped(skipped) or 'nothing at all'}): put .txt or "
            f".md files there, or name files of another ending with a glob such as '{folder}/**/*.csv'"
        )
    paths.sort(str(folder))
    return FoundFiles(paths, skipped, in_folder=True)


def _ending(name: str) -> str:
    """Return the end of a name that says what is in the file, in lower case: .txt, or .txt.gz."""
    stem, ending = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + ending if ending in COMPRESSED else ending


@lru_cache(maxsize=1000)
def _is_read(ending: str) -> bool:
    """Return whether files with this ending are read where they are found in a folder."""
    text = text_ending(Path(f"name{ending}"))
    return text in TEXT_ENDINGS or text in PLAIN_ENDINGS


def _walk(root: Path, skipped: Counter[str]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield `root` and each folder below it, with the sorted names of its files and the names of its folders.

    Hidden files and runs are left out. Every folder is yielded once, however many links lead to it: with its own path
    if that is below `root` too.
    """
    seen, folders, links = set[tuple[int, int]](), [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status = folder.stat()
        if (identity := (status.st_dev, status.st_ino)) in seen:
            continue
        seen.add(identity)
        files, below, linked = list[str](), list[str](), list[str]()
        with os.scandir(folder) as scan:
            for entry in scan:
                if not entry.name.startswith("."):
                    kind = files if not entry.is_dir() else linked if entry.is_symlink() else below
                    kind.append(entry.name)
        telling = _TELLING.intersection(files) | _TELLING.intersection(below + linked)
        if telling >= _PREPARED:
            continue
        if telling >= _RUN:
            if folder != root:
                skipped["run folder"] += 1
                continue
            files, below, linked = ([n for n in names if n not in _RUN_ENTRIES] for names in (files, below, linked))
        folders += [folder / name for name in sorted(below)]
        links += [folder / name for name in sorted(linked)]
        files.sort()
        yield folder, files, below + linked


def _files_of_glob(pattern: Path, dataset: str) -> FoundFiles:
    """Return the files that match a pattern, with any ending."""
    skipped = Counter[str]()
    literal = Path(*[part for part in _until_magic(pattern.parts)])
    paths = FileList()
    found = sorted(set(map(str, _expand(pattern, skipped))), key=lambda path: path.replace(os.sep, "\0"))
    for folder, group in itertools.groupby(found, key=os.path.dirname):
        names = list[str]()
        for path in map(Path, group):
            if _belongs_to_a_run(path, literal):
                skipped["file of a run"] += 1
            elif not path.is_dir():
                names.append(path.name)
        paths.add(folder, names)
    if paths:
        return FoundFiles(paths, skipped)
    beside = f" but {describe_skipped(skipped)}" if skipped else ""
    raise CorpusNotFoundError(
        f"no file matches {dataset!r}{beside}", "check the pattern and the folder that it starts from"
    )


def _until_magic(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _expand(pattern: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the paths that match a pattern. Python's own `**` would follow a loop of links without end."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    at = pattern.parts.index("**")
    rest = pattern.parts[at + 1 :] or ("*",)
    for root in glob.iglob(str(Path(*pattern.parts[:at]))):
        if os.path.isdir(root):
            for folder, _, _ in _walk(Path(root), skipped):
                yield from _expand(Path(glob.escape(str(folder)), *rest), skipped)


def _belongs_to_a_run(path: Path, literal: Path) -> bool:
    """Return whether a path that matched a pattern is a file of a run.

    The run's folder is below `literal`, the part of the pattern before the first wildcard, or it is `literal` itself.
    """
    for folder in path.parents:
        is_run = all((folder / name).exists() for name in _RUN)
        if folder == literal:
            return is_run and path.relative_to(folder).parts[0] in _RUN_ENTRIES
        if is_run:
            return True
    return False


def _files_beside(path: Path) -> list[str]:
    """Return the files in the folder of a path that does not exist, as suggestions for a mistyped name."""
    try:
        return [str(found) for found in islice(path.parent.iterdir(), 1000)]
    except OSError:
        return []
