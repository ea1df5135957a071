"""Where a head of each role would attend, as masks over (query, key), and how much attention lies there.

    self             s = t
    previous token   s = t - 1
    first token      s = 0
    same token       earlier occurrences of the token at t
    induction        tokens after earlier occurrences of the token at t: "prefix matching" of Olsson et al. 2022,
                     "In-context Learning and Induction Heads"
    space, vowel, …  tokens of a class of characters

A score is the mean attention on the mask. It is taken over the queries whose mask holds some of the tokens up to t but
not all, since there alone the score depends on the head. The same mean for a head that attends to all tokens equally is
the baseline.

Shapes: B batch, L layers, H heads, T queries, S keys, D distances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

VOWELS = frozenset("aeiouy")


def self_pattern(tokens_T: np.ndarray) -> np.ndarray:
    """Return mask_TS of the token itself."""
    return np.eye(len(tokens_T), dtype=bool)


def previous_pattern(tokens_T: np.ndarray) -> np.ndarray:
    """Return mask_TS of the token before."""
    return np.eye(len(tokens_T), k=-1, dtype=bool)


def first_pattern(tokens_T: np.ndarray) -> np.ndarray:
    """Return mask_TS of the first token."""
    mask_TS = np.zeros((len(tokens_T), len(tokens_T)), bool)
    mask_TS[:, 0] = True
    return mask_TS


def same_pattern(tokens_T: np.ndarray) -> np.ndarray:
    """Return mask_TS of the earlier occurrences of the token at t."""
    return np.tril(tokens_T[:, None] == tokens_T[None], -1)


def induction_pattern(tokens_T: np.ndarray) -> np.ndarray:
    """Return mask_TS of the tokens that come after earlier occurrences of the token at t."""
    mask_TS = np.zeros((len(tokens_T), len(tokens_T)), bool)
    mask_TS[:, 1:] = same_pattern(tokens_T)[:, :-1]
    return mask_TS


POSITIONAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "self": self_pattern,
    "previous token": previous_pattern,
    "first token": first_pattern,
    "same token": same_pattern,
}

CLASSES: dict[str, Callable[[str], bool]] = {
    "space": lambda text: text == " ",
    "line break": lambda text: text == "\n",
    "vowel": lambda text: len(text) == 1 and text in VOWELS,
    "consonant": lambda text: len(text) == 1 and text.islower() and text not in VOWELS,
    "capital": lambda text: len(text) == 1 and text.isupper(),
    "punctuation": lambda text: len(text) == 1 and text.isprintable() and not text.isalnum() and text != " ",
}
"""Classes of characters. A token of several characters is in none."""


def class_pattern(labels: Sequence[str], member: Callable[[str], bool]) -> np.ndarray:
    """Return mask_TS of the tokens up to t that belong to a class of characters."""
    return np.tril(np.tile(np.array([member(label) for label in labels]), (len(labels), 1)))


@dataclass
class Score:
    """A running mean of the attention on a mask, for each head, beside that of uniform attention."""

    total_LH: np.ndarray
    uniform_total: float = 0.0
    queries: int = 0

    def add(self, weights_LHTS: np.ndarray, mask_TS: np.ndarray, queries_T: np.ndarray | None = None) -> None:
        """Take in the attention of a text; `queries_T` restricts which queries count."""
        seen_T = np.arange(1, len(mask_TS) + 1)
        counts_T = mask_TS.sum(1)
        chosen_T = (counts_T > 0) & (counts_T < seen_T)
        if queries_T is not None:
            chosen_T &= queries_T
        self.total_LH = self.total_LH + mass_on(weights_LHTS, mask_TS)[..., chosen_T].sum(-1)
        self.uniform_total += float((counts_T / seen_T)[chosen_T].sum())
        self.queries += int(chosen_T.sum())

    @property
    def mean_LH(self) -> np.ndarray:
        """The mean attention on the mask; not a number if no query could have shown it."""
        return self.total_LH / self.queries if self.queries else np.full_like(self.total_LH, np.nan)

    @property
    def uniform(self) -> float:
        """The same mean for a head that attends to all tokens up to t equally."""
        return self.uniform_total / self.queries if self.queries else float("nan")


def mass_on(weights_LHTS: np.ndarray, mask_TS: np.ndarray) -> np.ndarray:
    """Return mass_LHT: the attention of each query that lies on the mask."""
    return (weights_LHTS * mask_TS).sum(-1)


def mean_distance(weights_LHTS: np.ndarray) -> np.ndarray:
    """Return distance_LH: the mean of t - s under the attention, over all queries, in tokens."""
    positions_T = np.arange(weights_LHTS.shape[-1])
    distances_TS = positions_T[:, None] - positions_T[None]
    return (weights_LHTS * distances_TS).sum(-1).mean(-1)


def mass_by_offset(weights_LHTS: np.ndarray) -> np.ndarray:
    """Return mass_LHD: the attention to the token D positions back, averaged over the queries that have one."""
    T = weights_LHTS.shape[-1]
    return np.stack([np.diagonal(weights_LHTS, -d, 2, 3).mean(-1) for d in range(T)], -1)
