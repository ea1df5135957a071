"""A dataset that may be a mixture: several texts with one vocabulary, each prepared and stored on its own.

The tokens of a text are the same files in every mixture and outside of one, so other weights or other sources prepare
nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from quill.data.dataset import Dataset, prepare_dataset
from quill.data.mixed_tokens import MixedTokens, TranslatedTokens
from quill.data.mixture import Mixture, find_mixture
from quill.data.reading.formats import OnProgress
from quill.data.sources import PathLike
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.char import CharTokenizer


@dataclass(frozen=True)
class MixedDataset:
    """The prepared texts of a mixture. Training windows are drawn by the shares, and a loss is their weighted mean."""

    mixture: Mixture
    sources: tuple[Dataset, ...]
    tokenizer: Tokenizer
    """the vocabulary of all sources together"""
    train: MixedTokens
    val: MixedTokens

    @property
    def name(self) -> str:
        """A name for the mixture."""
        return f"mixture-{self.sha256[:8]}"

    @property
    def title(self) -> str:
        """What messages call the mixture."""
        return str(self.mixture)

    @property
    def note(self) -> str:
        """The share of each text, and which text it is, in a line."""
        return "; ".join(self.notes)

    @property
    def notes(self) -> list[str]:
        """The share of each text, and which text it is."""
        shares = zip(self.mixture.shares, self.sources, strict=True)
        return [f"{100 * share:.4g} % {source.note}" for share, source in shares]

    @property
    def sha256(self) -> str:
        """A SHA-256 of the texts and their shares: with the same digest and vocabulary, batches are the same."""
        parts = zip(self.mixture.counts(), self.sources, strict=True)
        return hashlib.sha256("\n".join(f"{count} {source.sha256}" for count, source in parts).encode()).hexdigest()

    @property
    def longest_block_size(self) -> int:
        """The largest block_size for which both splits of every text are long enough; 0 if there is none."""
        return min(source.longest_block_size for source in self.sources)

    def require_window(self, block_size: int) -> None:
        """Raise CorpusError unless a window of `block_size` tokens fits into both splits of every text."""
        for source in self.sources:
            source.require_window(block_size)


AnyDataset: TypeAlias = Dataset | MixedDataset


def prepare_any(
    dataset: PathLike | Sequence[PathLike] | Mixture,
    *,
    tokenizer: str | Tokenizer = "char",
    data_dir: str | Path = "data",
    sha256: str | None = None,
    force: bool = False,
    on_progress: OnProgress = lambda what, share: None,
) -> AnyDataset:
    """Return the dataset of a text, as `prepare_dataset` does, or of a mixture of texts."""
    mixture = find_mixture(dataset)
    if mixture is None:
        assert not isinstance(dataset, Mixture)
        return prepare_dataset(
            dataset, tokenizer=tokenizer, data_dir=data_dir, sha256=sha256, force=force, on_progress=on_progress
        )
    sources = [
        prepare_dataset(path, tokenizer=tokenizer, data_dir=data_dir, force=force, on_progress=on_progress)
        for path in mixture.paths
    ]
    shared = _shared([source.tokenizer for source in sources])
    train, val = (
        MixedTokens(
            [_translated(tokens, source.tokenizer, shared) for tokens, source in zip(split, sources, strict=True)],
            mixture.paths,
            mixture.counts(),
        )
        for split in ([source.train for source in sources], [source.val for source in sources])
    )
    return MixedDataset(mixture, tuple(sources), shared, train, val)


def _shared(tokenizers: Sequence[Tokenizer]) -> Tokenizer:
    """Return the tokenizer of all texts together: that of `CharTokenizer.from_text`, unless all have the same."""
    first = tokenizers[0]
    if all(tokenizer == first for tokenizer in tokenizers):
        return first
    vocabularies = [each.characters for each in tokenizers if isinstance(each, CharTokenizer)]
    assert len(vocabularies) == len(tokenizers)
    return CharTokenizer("".join(sorted(set().union(*vocabularies))))


def _translated(tokens: np.ndarray, own: Tokenizer, shared: Tokenizer) -> np.ndarray | TranslatedTokens:
    if own == shared:
        return tokens
    assert isinstance(own, CharTokenizer)
    return TranslatedTokens(tokens, shared.encode(own.characters, compact=True))
