"""The tokens of several texts with one vocabulary, as if they were one array behind the other.

The tokens of each text stay as they are on disk, in the vocabulary of that text. They are translated to the shared
vocabulary where they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np


class TranslatedTokens:
    """Tokens of one text, translated by table_V: the shared id of each of its own ids."""

    def __init__(self, tokens: np.ndarray, table_V: np.ndarray) -> None:
        self._tokens, self._table_V, self.dtype = tokens, table_V, table_V.dtype

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, key: Any) -> Any:
        return self._table_V[np.asarray(self._tokens)[key]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class MixedTokens:
    """The tokens of several texts, with their names, and how many of a deck of windows each of them has."""

    def __init__(
        self, parts: Sequence[np.ndarray | TranslatedTokens], names: Sequence[str], counts: Sequence[int]
    ) -> None:
        self.parts, self.names, self.counts = tuple(parts), tuple(names), tuple(counts)
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self.starts_S = np.cumsum([0, *map(len, parts)])[:-1]
        """where each text begins"""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, key: slice) -> np.ndarray:
        start, stop, step = key.indices(len(self))
        pieces = [np.empty(0, self.dtype)]
        for first, part in zip(self.starts_S.tolist(), self.parts, strict=True):
            if first < stop and start < first + len(part):
                pieces.append(np.asarray(part[max(0, start - first) : stop - first], self.dtype))
        return np.concatenate(pieces)[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(part, dtype or self.dtype) for part in self.parts])

    def windows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """Return windows of this length, each from within one text."""
        windows_BT = np.empty((len(starts_B), length), self.dtype)
        sources_B = np.searchsorted(self.starts_S, starts_B, side="right") - 1
        for source, part in enumerate(self.parts):
            rows = sources_B == source
            places_BT = (starts_B[rows] - self.starts_S[source])[:, None] + np.arange(length)
            windows_BT[rows] = _gather(part, places_BT)
        return windows_BT


Tokens: TypeAlias = np.ndarray | TranslatedTokens | MixedTokens
"""The tokens of a text or of several."""


def windows_at(tokens: Tokens, starts_B: np.ndarray, length: int) -> np.ndarray:
    """Return the windows of tokens that begin at these places, as one array in the stored dtype."""
    if isinstance(tokens, MixedTokens):
        return tokens.windows(starts_B, length)
    return _gather(tokens, starts_B[:, None] + np.arange(length))


def _gather(tokens: np.ndarray | TranslatedTokens, places: np.ndarray) -> np.ndarray:
    return tokens[places] if isinstance(tokens, TranslatedTokens) else np.asarray(tokens)[places]
