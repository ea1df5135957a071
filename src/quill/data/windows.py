"""Batches of windows for training, and consecutive windows for evaluation.

A batch is a pure function of (tokens, seed, step, rank), so resuming needs no loader state. Training windows come in
one of two orders: random, as in nanoGPT, or shuffled, where an epoch takes every part of the text once. The order of a
long text is computed for the windows of a batch alone, so no memory grows with the text.

In a mixture the windows of all steps form one sequence too. Each DECK of them has the exact share of every text, in an
order of its own, which decides the text of a row. The windows of a text follow each other in that text's own order.

Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for the counter-based generator.
Shapes: B batch, T time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np

from quill.data.mixed_tokens import MixedTokens, Tokens, windows_at
from quill.data.mixture import DECK
from quill.data.permutation import ROUNDS, permute
from quill.errors import CorpusError

DataOrder = Literal["random", "shuffled"]

LISTED_WINDOWS = 1 << 20
"""The order of an epoch of at most this many windows is an array (4 MiB), as in runs of earlier versions."""


def sample_batch(
    tokens: Tokens,
    *,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    data_order: DataOrder = "random",
    part: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_BT, targets_BT), int64, of one step: a pure function of the arguments.

    In random order each start is equally likely; in shuffled order every part of the text occurs once in each epoch.
    `part` selects windows of the batch: each of several processes takes its own.
    CorpusError if there are too few tokens for a window and its last target.
    """
    for text in tokens.parts if isinstance(tokens, MixedTokens) else (tokens,):
        require_window(text, block_size, "the text")
    sizes = {"batch_size": batch_size, "block_size": block_size}
    starts_B = batch_starts(tokens, **sizes, seed=seed, step=step, rank=rank, data_order=data_order)
    return _windows(tokens, starts_B[part], block_size)


def batch_starts(
    tokens: Tokens,
    *,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    data_order: DataOrder = "random",
) -> np.ndarray:
    """Return starts_B, int64: the first token of each window of a batch, in a text or in one of several."""
    if isinstance(tokens, MixedTokens):
        return _mixed_starts(tokens, batch_size, block_size, seed, step, rank, data_order)
    sizes = {"batch_size": batch_size, "block_size": block_size}
    return window_starts(len(tokens), **sizes, seed=seed, step=step, rank=rank, data_order=data_order)


def window_starts(
    count: int,
    *,
    batch_size: int,
    block_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    data_order: DataOrder = "random",
) -> np.ndarray:
    """Return starts_B, int64: the first token of each window of a batch, out of `count` tokens."""
    if data_order == "shuffled":
        return _shuffled_starts(count, batch_size, block_size, seed, step, rank)
    return _generator(seed, rank, step).integers(0, count - block_size, size=batch_size)


def _shuffled_starts(count: int, batch_size: int, block_size: int, seed: int, step: int, rank: int) -> np.ndarray:
    # The windows of all steps form one sequence, which runs through one epoch after another.
    return _starts_in_order(count, block_size, seed, rank, step * batch_size + np.arange(batch_size), LISTED_WINDOWS)


def _starts_in_order(
    count: int, block_size: int, seed: int, rank: int, numbers_B: np.ndarray, most_listed: int
) -> np.ndarray:
    """Return the starts of the windows with these numbers in the sequence of all epochs."""
    windows = max(1, (count - 1) // block_size - 1)  # one fewer than fit, so that each epoch can have its own offset
    epochs_B, indices_B = np.divmod(numbers_B, windows)
    starts_B = np.empty(len(numbers_B), np.int64)
    for epoch in np.unique(epochs_B).tolist():
        of_epoch = epochs_B == epoch
        offset, order_N = _shuffled_epoch(
            count, windows, block_size, seed, rank, epoch, indices_B[of_epoch], most_listed
        )
        starts_B[of_epoch] = offset + order_N * block_size
    return starts_B


def _shuffled_epoch(
    count: int, windows: int, block_size: int, seed: int, rank: int, epoch: int, indices_N: np.ndarray, most_listed: int
) -> tuple[int, np.ndarray]:
    """Return the offset of an epoch's first window, and the windows at these places of its order."""
    if windows <= most_listed:
        offset, order = _listed_epoch(count, windows, block_size, seed, rank, epoch)
        return offset, order[indices_N].astype(np.int64)
    generator = _generator(seed, rank, epoch)
    offset = int(generator.integers(0, count - windows * block_size))
    keys_R = generator.integers(0, 2**64, size=ROUNDS, dtype=np.uint64)
    return offset, permute(indices_N, windows, keys_R)


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _listed_epoch(
    count: int, windows: int, block_size: int, seed: int, rank: int, epoch: int
) -> tuple[int, np.ndarray]:
    """Return the offset of an epoch's first window, and the order of all its windows."""
    generator = _generator(seed, rank, epoch)
    offset = int(generator.integers(0, count - windows * block_size))
    return offset, generator.permutation(np.arange(windows, dtype=np.int32))


def _mixed_starts(
    tokens: MixedTokens, batch_size: int, block_size: int, seed: int, step: int, rank: int, data_order: DataOrder
) -> np.ndarray:
    """Return starts_B in the texts one behind the other. The batch has the same rows for any number of processes."""
    decks_B, places_B = np.divmod(step * batch_size + np.arange(batch_size), DECK)
    sources_B, numbers_B = np.empty((2, batch_size), np.int64)
    for deck in np.unique(decks_B).tolist():
        of_deck = decks_B == deck
        sources_K, numbers_K = _deck(tokens.counts, seed, rank, deck)
        sources_B[of_deck], numbers_B[of_deck] = sources_K[places_B[of_deck]], numbers_K[places_B[of_deck]]
    numbers_B += decks_B * np.array(tokens.counts)[sources_B]  # of the windows that a text has had in earlier decks
    lengths_S = np.array([len(part) for part in tokens.parts])
    if data_order == "random":
        starts_B = _generator(seed, rank, step).integers(0, lengths_S[sources_B] - block_size)
    else:
        starts_B = np.empty(batch_size, np.int64)
        for source, length in enumerate(lengths_S.tolist()):
            rows = sources_B == source
            # Lists of the orders of several texts would take memory for each of them.
            stream = _stream(rank, source)
            starts_B[rows] = _starts_in_order(length, block_size, seed, stream, numbers_B[rows], most_listed=0)
    return tokens.starts_S[sources_B] + starts_B


@functools.lru_cache(maxsize=2)  # a batch may end one deck and begin the next
def _deck(counts: tuple[int, ...], seed: int, rank: int, deck: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sources_K, the text of each window of a deck, and numbers_K, how many the text had in it before."""
    sources_K = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    sources_K = _generator(seed, _stream(rank, len(counts)), deck).permutation(sources_K)
    order_K = np.argsort(sources_K, kind="stable")
    firsts_S = np.cumsum([0, *counts])[:-1]
    numbers_K = np.empty(DECK, np.int32)
    numbers_K[order_K] = np.arange(DECK) - firsts_S[sources_K[order_K]]
    return sources_K, numbers_K


def _stream(rank: int, number: int) -> int:
    """Return the key of a generator that no rank has."""
    return rank + ((number + 1) << 32)


def _generator(seed: int, rank: int, number: int) -> np.random.Generator:
    # Draws advance the lower 128 bits of the counter. `number` is above them, so that no two streams overlap.
    key, counter = np.array([seed, rank], np.uint64), np.array([0, 0, number, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def evaluation_windows(
    tokens: Tokens, *, block_size: int, batch_size: int, max_windows: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs_BT, targets_BT), int64, of consecutive windows: every token but the first is a target once.

    The last window, if shorter, is a batch of its own. `max_windows` takes that many full windows, evenly spaced,
    for an estimate. CorpusError if there is no target at all.
    """
    require_window(tokens, 1, "the text")
    full, rest = divmod(len(tokens) - 1, block_size)
    chosen = range(full)
    if max_windows is not None and max_windows < full + (rest > 0):
        chosen, rest = np.linspace(0, full - 1, min(max_windows, full)).round().astype(np.int64), 0
    for first in range(0, len(chosen), batch_size):
        yield _windows(tokens, np.asarray(chosen[first : first + batch_size]) * block_size, block_size)
    if rest:
        yield _windows(tokens, np.array([full * block_size]), rest)


def longest_block_size(*splits: Tokens) -> int:
    """Return the largest block_size for which each of these splits has a window and its last target, else 0."""
    return max(0, min(map(len, splits)) - 1)


def require_window(tokens: Tokens, block_size: int, what: str) -> None:
    """Raise CorpusError with the numbers unless the tokens (described by `what`) hold a window and its last target."""
    count = len(tokens)
    if count > block_size:
        return
    longest = longest_block_size(tokens)
    shorter = f"use block_size={longest} or less, or a longer text" if longest else "use a longer text"
    raise CorpusError(
        f"{what} has {count:,} token{'' if count == 1 else 's'}; block_size={block_size} needs at least "
        f"{block_size + 1:,}: {shorter}"
    )


def _windows(tokens: Tokens, starts_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    # Gather in the stored dtype, then convert: an eighth of the memory traffic, and both results are contiguous.
    windows = windows_at(tokens, starts_B, length + 1)
    return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)
