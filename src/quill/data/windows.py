"""Windows of a text: batches to learn from, and all of it once to score.

A batch is a pure function of (tokens, seed, step, rank): resuming needs no state of a loader. The text is read in one
of two orders: random windows, as nanoGPT takes them, or shuffled ones, in which every part of the text comes once
before any part comes again.

Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for the counter-based generator.
Shapes: B batch, T time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np

from quill.errors import CorpusError

Order = Literal["random", "shuffled"]


def sample_batch(
    tokens: np.ndarray,
    *,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    order: Order = "random",
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_BT, targets_BT), int64: windows of the text, fixed by the arguments alone.

    In `order` random each start is equally likely; shuffled takes every part of the text once before any part again.
    CorpusError if the tokens are fewer than a window.
    """
    require_window(tokens, block_size, "the text")
    sizes = {"batch_size": batch_size, "block_size": block_size}
    starts_B = window_starts(len(tokens), **sizes, seed=seed, step=step, rank=rank, order=order)
    return _windows(tokens, starts_B, block_size)


def window_starts(
    count: int,
    *,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    order: Order = "random",
) -> np.ndarray:
    """Return starts_B, int64: where the windows of a batch begin among `count` tokens, fixed by the arguments alone."""
    if order == "shuffled":
        return _shuffled_starts(count, batch_size, block_size, seed, step, rank)
    return _generator(seed, rank, step).integers(0, count - block_size, size=batch_size)


def _shuffled_starts(count: int, batch_size: int, block_size: int, seed: int, step: int, rank: int) -> np.ndarray:
    # The windows of all steps, one after another, go through one reading of the text after another.
    windows = max(1, (count - 1) // block_size - 1)  # one less than fit, so that each reading can cut elsewhere
    readings_B, places_B = np.divmod(step * batch_size + np.arange(batch_size), windows)
    starts_B = np.empty(batch_size, np.int64)
    for reading in np.unique(readings_B).tolist():
        offset, shuffled = _reading(count, windows, block_size, seed, rank, reading)
        of_it = readings_B == reading
        starts_B[of_it] = offset + shuffled[places_B[of_it]].astype(np.int64) * block_size
    return starts_B


@functools.lru_cache(maxsize=2)  # a batch may end one reading and begin the next
def _reading(count: int, windows: int, block_size: int, seed: int, rank: int, reading: int) -> tuple[int, np.ndarray]:
    """Return where the first window of this reading of the text begins, and in which order windows come."""
    generator = _generator(seed, rank, reading)
    offset = int(generator.integers(0, count - windows * block_size))
    return offset, generator.permutation(np.arange(windows, dtype=np.int32 if windows < 2**31 else np.int64))


def _generator(seed: int, rank: int, number: int) -> np.random.Generator:
    # The counter's lower 128 bits run while numbers are drawn; the number sits above, so that no two ever overlap.
    key, counter = np.array([seed, rank], np.uint64), np.array([0, 0, number, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def evaluation_windows(
    tokens: np.ndarray, *, block_size: int, batch_size: int, max_windows: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs_BT, targets_BT), int64, over consecutive windows: every token but the first is a target once.

    The last window, if shorter, comes by itself. `max_windows` takes that many full windows, evenly spaced: an
    estimate. CorpusError if there is no target at all.
    """
    require_window(tokens, 1, "the text")
    full, rest = divmod(len(tokens) - 1, block_size)
    chosen = np.arange(full)
    if max_windows is not None and max_windows < full + (rest > 0):
        chosen, rest = np.linspace(0, full - 1, min(max_windows, full)).round().astype(np.int64), 0
    for first in range(0, len(chosen), batch_size):
        yield _windows(tokens, chosen[first : first + batch_size] * block_size, block_size)
    if rest:
        yield _windows(tokens, np.array([full * block_size]), rest)


def require_window(tokens: np.ndarray, block_size: int, what: str) -> None:
    """Raise CorpusError with the numbers unless the tokens (`what` they are) hold a window and its last target."""
    count = len(tokens)
    if count > block_size:
        return
    shorter = f"use --block_size={count - 1} or less, or a longer text" if count > 1 else "use a longer text"
    raise CorpusError(
        f"{what} has {count:,} token{'' if count == 1 else 's'}; block_size={block_size} needs at least "
        f"{block_size + 1:,}: {shorter}"
    )


def _windows(tokens: np.ndarray, starts_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    # Gathered as they are stored and widened after: an eighth of the memory traffic, and both results contiguous.
    windows = np.asarray(tokens)[starts_B[:, None] + np.arange(length + 1)]
    return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)
