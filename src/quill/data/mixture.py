"""A mixture of texts and their weights, as in `a.txt:0.7,b/:0.3`: seven of ten training windows are from a.txt.

A source is anything that a dataset can name. Weights are divided by their sum.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from quill.errors import CorpusError
from quill.files import expand_home
from quill.validation import show

DECK = 1 << 16
"""Windows in which every source has its exact share; see data/windows.py."""

_EXAMPLE = "a.txt:0.7,b.txt:0.3"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows


@dataclass(frozen=True)
class Mixture:
    """The paths of several sources, and the share of each, which sum to 1."""

    paths: tuple[str, ...]
    shares: tuple[float, ...]

    def __str__(self) -> str:
        return ",".join(f"{path}:{share:.4g}" for path, share in zip(self.paths, self.shares, strict=True))

    def moved(self, move: Callable[[str], str]) -> Mixture:
        """Return the mixture with other paths."""
        return Mixture(tuple(map(move, self.paths)), self.shares)

    def counts(self) -> tuple[int, ...]:
        """Return how many of DECK windows each source has: a whole number of at least 1, by the largest remainders."""
        exact_S = np.array(self.shares) * DECK
        counts_S = exact_S.astype(np.int64)
        counts_S[np.argsort(counts_S - exact_S, kind="stable")[: DECK - counts_S.sum()]] += 1
        return tuple(counts_S.tolist())


def find_mixture(dataset: object) -> Mixture | None:
    """Return the mixture that a dataset names; None for a path that exists, or anything without weights.

    CorpusError if a weight is missing or cannot be used, or if it is not clear where a path ends.
    """
    if isinstance(dataset, Mixture):
        return dataset
    if not isinstance(dataset, str) or ":" not in dataset:
        return None
    sources = [_split(part.strip()) for part in dataset.split(",")]
    if not any(map(_is_number, (weight for _, weight in sources))) or os.path.lexists(expand_home(dataset)):
        return None
    weights = [_weight(path, weight) for path, weight in sources]
    paths = tuple(path for path, _ in sources)
    if len(paths) < 2:
        raise CorpusError(f"dataset={show(dataset)} gives one text a weight: a mixture has two or more ({_EXAMPLE})")
    if twice := next((path for path in paths if paths.count(path) > 1), ""):
        raise CorpusError(f"the mixture {show(dataset)} has {twice!r} twice: add its weights, and name it once")
    total = sum(weights)
    for path, weight in zip(paths, weights, strict=True):
        if not total < inf or weight / total * DECK < 1:
            raise CorpusError(
                f"the weight of {path!r} in the mixture {show(dataset)} is too small or another is too large: a source "
                f"needs a share of at least 1/{DECK:,}"
            )
    return Mixture(paths, tuple(weight / total for weight in weights))


def _split(part: str) -> tuple[str, str | None]:
    """Return the path and the weight of a part; None for the weight if it has none."""
    path, colon, weight = part.rpartition(":")
    return (path, weight) if colon and not re.search(r"[\\/]", weight) else (part, None)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) is not None
    except ValueError:
        return False


def _weight(path: str, text: str | None) -> float:
    if text is None or not path:
        raise CorpusError(
            f"{show(path)} has no weight in a mixture: give each text its own, as in {_EXAMPLE}; a path with a comma "
            "or a colon in it must be renamed first"
        )
    if ":" in _DRIVE.sub("", path):
        raise CorpusError(f"{path!r} has a colon in it, so it cannot be in a mixture ({_EXAMPLE}): rename it")
    weight = float(text) if _is_number(text) else 0.0
    if not 0 < weight < inf:
        raise CorpusError(f"{text!r} is not a weight for {path!r}: it must be a number above 0, as in {_EXAMPLE}")
    return weight
