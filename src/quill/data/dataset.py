"""A corpus as tokens on disk: prepare it, open it, find it again.

The tokens of a corpus are in `data_dir/<name>/<tokenizer>/`; token_files.py describes the files. The first 90 % of the
characters are the training split, the rest is the validation split. windows.py cuts batches from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quill.data.corpus import SHAKESPEARE, CorpusNotFoundError, find_sources, read_sources
from quill.data.large import LARGE_TEXT, prepare_large
from quill.data.reading.formats import OnProgress
from quill.data.sources import Corpus, PathLike, Sources, name_of, paths_of, require_two
from quill.data.token_files import map_tokens, read_description, remove_dead_drafts, write_tokens
from quill.data.windows import longest_block_size
from quill.errors import ConfigError, CorpusError
from quill.files import expand_home
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import build_tokenizer, check_tokenizer, tokenizer_from_json
from quill.validation import require


def _ignore(what: str, share: float) -> None:
    pass


@dataclass(frozen=True)
class Dataset:
    """A corpus as tokens on disk: `train` and `val` are read-only memory maps of the tokenizer's dtype."""

    name: str
    folder: Path
    source: str
    sha256: str
    """SHA-256 of the text as UTF-8: datasets with the same digest and the same tokenizer have the same tokens"""
    tokenizer: Tokenizer
    train: np.memmap
    val: np.memmap
    train_characters: int
    val_characters: int
    note: str = ""
    title: str = ""
    """what messages call it: the path as the user gave it, or the name of a named corpus"""
    files: str = ""
    """of a large corpus, a digest of the paths, sizes and times of its files: while it is the same, none is read"""

    @property
    def longest_block_size(self) -> int:
        """The largest block_size for which both splits are long enough; 0 if there is none."""
        return longest_block_size(self.train, self.val)

    def require_window(self, block_size: int) -> None:
        """Raise CorpusError unless a window of `block_size` tokens and its last target fit into both splits."""
        longest = self.longest_block_size
        if block_size <= longest:
            return
        split, tokens = min(("training", self.train), ("validation", self.val), key=lambda each: len(each[1]))
        title, needed = self.title or self.name, 10 * block_size + 1  # the validation split is a tenth, rounded up
        found = f"the {split} split of {title} has {len(tokens):,} token{'s' * (len(tokens) != 1)}"
        if longest == 0:
            raise CorpusError(
                f"{title} is too short to train on ({found}): use a text of at least {needed:,} characters for "
                f"block_size={block_size}"
            )
        raise CorpusError(
            f"{found}; block_size={block_size} needs at least {block_size + 1:,}: use block_size={longest} or less, "
            f"or a text of at least {needed:,} characters"
        )


def prepare_dataset(
    dataset: PathLike | Sequence[PathLike] | None = None,
    *,
    text: str | None = None,
    tokenizer: str | Tokenizer = "char",
    data_dir: str | Path = "data",
    corpus: Corpus | None = None,
    sha256: str | None = None,
    force: bool = False,
    on_progress: OnProgress = _ignore,
) -> Dataset:
    """Return the dataset of a named corpus, a path, several paths or a `text`; prepare it if it is not on disk.

    Prepared tokens in `data_dir` are used if they came from the same text, or if the text can no longer be found;
    `force` prepares them again. With `sha256`, a text that cannot be found is replaced by prepared tokens of the text
    with this digest, under any name, so that a run can be resumed from another folder. A text that is found is not
    compared with it.

    `tokenizer` is a name, or a tokenizer to be used. `on_progress` is called many times a second with the current phase
    and its completed share. An exception from it or from a signal handler ends the work and leaves no partial files.
    CorpusError if a text is missing or cannot be used, or the files cannot be written; TokenizerError if the tokenizer
    cannot encode the text.
    """
    check_tokenizer(tokenizer)
    require(isinstance(data_dir, str | Path), "data_dir", data_dir, "the path of a folder, as text or a Path")
    if text is not None:
        corpus = Corpus.from_text(text, on_progress=on_progress)
    elif corpus is None and dataset is None:
        raise ConfigError("prepare_dataset needs a dataset (a name, a path or several) or a text=…")
    name = corpus.name if corpus else name_of(dataset or ())
    folder = dataset_folder(name, tokenizer, data_dir)
    remove_dead_drafts(folder.parent)
    prepared = None if force else _open_if_whole(folder, tokenizer, on_progress)
    if corpus is None:
        assert dataset is not None
        if prepared and dataset == "shakespeare" and prepared.sha256 == SHAKESPEARE.sha256:
            return prepared  # this text never changes, so there is no need to look for it again
        try:
            offline = prepared is not None and dataset == "tinystories"  # do not download gigabytes again
            kind = _kind_of(tokenizer)
            sources = find_sources(dataset, tokenizer=kind, offline=offline, on_progress=on_progress)
        except CorpusNotFoundError:
            if prepared is None and not force:
                prepared = _open_by_name(dataset, tokenizer, data_dir, on_progress)
            if sha256 and not force and (prepared is None or prepared.sha256 != sha256):
                prepared = find_prepared(sha256, tokenizer, data_dir, on_progress=on_progress) or prepared
            if prepared is None:
                raise
            return replace(
                prepared, note=f"{prepared.note}; the text is not there any more, its prepared tokens are used"
            )
        if sources.reader.most_text > LARGE_TEXT:
            return _prepare_large(sources, tokenizer, folder, prepared, force=force, on_progress=on_progress)
        corpus = read_sources(sources, on_progress=on_progress)
    if prepared and prepared.sha256 == corpus.sha256:
        return replace(prepared, note=corpus.note, source=corpus.source, title=corpus.title or corpus.name)
    prepared = None  # Windows renames no folder whose files are mapped
    _prepare(corpus, tokenizer, folder, force=force, on_progress=on_progress)
    return open_dataset(folder, verify=False)


def dataset_folder(name: str, tokenizer: str | Tokenizer, data_dir: str | Path) -> Path:
    """Return the folder for the tokens of the corpus of this name."""
    if isinstance(tokenizer, str):
        kind = tokenizer
    elif (
        kind := tokenizer.kind
    ) != "byte":  # the byte vocabulary is always the same; another is identified by its digest
        described = json.dumps(tokenizer.to_json(), sort_keys=True).encode()
        kind += f"-{hashlib.sha256(described).hexdigest()[:8]}"
    return expand_home(data_dir) / name / kind


def open_dataset(folder: str | Path, *, verify: bool = True, on_progress: OnProgress = _ignore) -> Dataset:
    """Return the dataset in a folder; CorpusError if there is none, or a byte of it is missing or altered.

    Without `verify` altered tokens are not noticed: for files that were just written.
    """
    folder = Path(folder)
    about = read_description(folder)
    try:
        tokenizer = tokenizer_from_json(about["tokenizer"])
        facts: dict[str, Any] = {key: str(about[key]) for key in ("name", "source", "sha256", "note", "title")}
        return Dataset(
            **facts,
            folder=folder,
            tokenizer=tokenizer,
            train=map_tokens(folder, "train", about, tokenizer.dtype, verify, on_progress),
            val=map_tokens(folder, "val", about, tokenizer.dtype, verify, on_progress),
            train_characters=int(about["train"]["characters"]),
            val_characters=int(about["val"]["characters"]),
            files=str(about.get("files", "")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{folder} is damaged ({error}): delete the folder and prepare it again") from error


def find_prepared(
    sha256: str, tokenizer: str | Tokenizer, data_dir: str | Path, *, on_progress: OnProgress = _ignore
) -> Dataset | None:
    """Return a dataset in `data_dir` that was prepared from the text with this SHA-256, under any name, or None."""
    for folder in sorted(expand_home(data_dir).glob("*/*/")):
        try:
            same = read_description(folder)["sha256"] == sha256
        except CorpusError:
            continue
        same = same and folder.name == dataset_folder(folder.parent.name, tokenizer, data_dir).name
        if same and (found := _open_if_whole(folder, tokenizer, on_progress)):
            return found
    return None


def _open_by_name(
    dataset: PathLike | Sequence[PathLike], tokenizer: str | Tokenizer, data_dir: str | Path, on_progress: OnProgress
) -> Dataset | None:
    """Return the dataset whose folder has this name, such as that of a text that came from no file, or None."""
    name, *others = paths_of(dataset)
    if others or Path(name).name != name:
        return None
    return _open_if_whole(dataset_folder(name, tokenizer, data_dir), tokenizer, on_progress)


def _open_if_whole(folder: Path, tokenizer: str | Tokenizer, on_progress: OnProgress = _ignore) -> Dataset | None:
    try:
        found = open_dataset(folder, on_progress=on_progress)
    except CorpusError:
        return None
    return found if isinstance(tokenizer, str) or found.tokenizer == tokenizer else None


def _kind_of(tokenizer: str | Tokenizer) -> str:
    return tokenizer if isinstance(tokenizer, str) else tokenizer.kind


def _prepare(corpus: Corpus, tokenizer: str | Tokenizer, folder: Path, *, force: bool, on_progress: OnProgress) -> None:
    """Write the tokens of a corpus, unless another process has written them meanwhile."""
    text, title = corpus.text, corpus.title or corpus.name
    require_two(len(text), title)
    built = build_tokenizer(tokenizer, text, on_share=lambda share: on_progress("building the vocabulary", share))
    facts = {
        "name": corpus.name,
        "title": title,
        "source": corpus.source,
        "sha256": corpus.sha256,
        "note": corpus.note,
    }

    def is_done() -> bool:
        prepared = None if force else _open_if_whole(folder, tokenizer)
        return prepared is not None and prepared.sha256 == corpus.sha256

    write_tokens(folder, facts, text, built, is_done=is_done, on_progress=on_progress)


def _prepare_large(
    sources: Sources,
    tokenizer: str | Tokenizer,
    folder: Path,
    prepared: Dataset | None,
    *,
    force: bool,
    on_progress: OnProgress,
) -> Dataset:
    """Return the dataset of a large corpus. Its files are read only if one of them is another than before."""
    if prepared and prepared.files == sources.digest:
        return prepared

    def is_done() -> bool:
        found = None if force else _open_if_whole(folder, tokenizer)
        return found is not None and found.files == sources.digest

    prepared = None  # Windows renames no folder whose files are mapped
    prepare_large(sources, tokenizer, folder, is_done=is_done, force=force, on_progress=on_progress)
    return open_dataset(folder, verify=False)
