"""Batches are pure functions of their arguments, in either order, and scoring takes every token exactly once."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.data import windows as module
from quill.data.windows import evaluation_windows, require_window, sample_batch, window_starts
from quill.errors import CorpusError

TOKENS = np.arange(1000, dtype=np.uint16)


def test_a_batch_depends_on_nothing_but_its_arguments() -> None:
    draw: dict[str, Any] = {"batch_size": 8, "block_size": 16}
    first = sample_batch(TOKENS, seed=1, step=5, rank=2, **draw)
    sample_batch(TOKENS, seed=9, step=9, **draw)
    assert all(map(np.array_equal, first, sample_batch(TOKENS, seed=1, step=5, rank=2, **draw)))
    for other in ({"seed": 2, "step": 5, "rank": 2}, {"seed": 1, "step": 6, "rank": 2}, {"seed": 1, "step": 5}):
        assert not np.array_equal(first[0], sample_batch(TOKENS, **other, **draw)[0])


def test_batches_of_one_seed_never_change_between_versions() -> None:
    inputs, _ = sample_batch(TOKENS, batch_size=4, block_size=16, seed=1337, step=7, rank=1)
    assert inputs[:, 0].tolist() == [596, 509, 943, 60]
    inputs, _ = sample_batch(TOKENS, batch_size=4, block_size=16, seed=1337, step=7, rank=1, data_order="shuffled")
    assert inputs[:, 0].tolist() == [354, 146, 114, 882]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 99), st.integers(0, 2**63), st.integers(0, 2**63))
def test_targets_are_the_inputs_one_token_later(batch_size: int, block_size: int, seed: int, step: int) -> None:
    inputs, targets = sample_batch(TOKENS[:100], batch_size=batch_size, block_size=block_size, seed=seed, step=step)
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert inputs.dtype == targets.dtype == np.int64 and inputs.flags.c_contiguous and targets.flags.c_contiguous
    assert np.array_equal(targets, inputs + 1)


def test_every_start_is_equally_likely() -> None:
    starts = sample_batch(TOKENS[:12], batch_size=80_000, block_size=4, seed=0, step=0)[0][:, 0]
    counts = np.bincount(starts)
    assert len(counts) == 8 and abs(counts - 10_000).max() < 500  # five standard deviations


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 9))
def test_shuffled_windows_come_once_before_any_comes_again(
    count: int, block_size: int, batch_size: int, seed: int, epoch: int
) -> None:
    for listed_windows in (2**20, 0):  # the order as an array, and the one of long texts
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LISTED_WINDOWS", listed_windows)
            check_epoch(count, block_size, batch_size, seed, epoch)


def check_epoch(count: int, block_size: int, batch_size: int, seed: int, epoch: int) -> None:
    """Assert that the windows of an epoch lie one behind the other, in the text, and come once each."""
    if count <= block_size:
        return
    windows = max(1, (count - 1) // block_size - 1)
    draw = {"batch_size": batch_size, "block_size": block_size, "seed": seed, "data_order": "shuffled"}
    first, last = epoch * windows, (epoch + 1) * windows
    steps = range(first // batch_size, -(-last // batch_size))
    batches = [sample_batch(TOKENS[:count], step=step, **draw)[0][:, 0] for step in steps]
    skipped = first - steps[0] * batch_size
    starts = np.sort(np.concatenate(batches)[skipped : skipped + windows])
    assert np.array_equal(np.diff(starts), [block_size] * (windows - 1))
    assert starts[0] >= 0 and starts[-1] + block_size < count


def test_the_order_of_a_long_text_never_changes_between_versions() -> None:
    draw: dict[str, Any] = {"batch_size": 4, "block_size": 256, "seed": 1337, "rank": 0, "data_order": "shuffled"}
    assert window_starts(10**12, step=7, **draw).tolist() == [884955598447, 452913930095, 430415719791, 807914799471]


def test_the_order_of_a_text_of_any_length_takes_no_memory() -> None:
    draw: dict[str, Any] = {"batch_size": 64, "block_size": 256, "seed": 0, "data_order": "shuffled"}
    window_starts(10**9, step=0, **draw)  # what is allocated once is not counted
    tracemalloc.start()
    starts = window_starts(10**15, step=10**9, **draw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 and len(set(starts.tolist())) == 64
    assert starts.min() >= 0 and starts.max() + 256 < 10**15
    assert starts.max() - starts.min() > 10**14, "the windows of a batch come from all over the text"


def test_each_shuffled_epoch_has_an_order_and_an_offset_of_its_own() -> None:
    draw = {"batch_size": 98, "block_size": 10, "data_order": "shuffled"}  # one epoch a step
    runs = [sample_batch(TOKENS, seed=seed, step=step, **draw)[0][:, 0] for seed in (0, 1) for step in (0, 1, 2)]
    assert len({tuple(starts // 10) for starts in runs}) == len(runs)
    assert len({tuple(starts % 10) for starts in runs}) > 1


def test_shuffled_windows_of_a_short_text_begin_anywhere() -> None:
    starts = sample_batch(TOKENS[:12], batch_size=8_000, block_size=4, seed=0, step=0, data_order="shuffled")[0][:, 0]
    counts = np.bincount(starts)
    assert len(counts) == 8 and abs(counts - 1_000).max() < 150  # five standard deviations


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 40), st.integers(1, 7))
def test_every_target_is_scored_exactly_once(count: int, block_size: int, batch_size: int) -> None:
    scored = []
    for inputs, targets in evaluation_windows(TOKENS[:count], block_size=block_size, batch_size=batch_size):
        assert inputs.shape == targets.shape and np.array_equal(targets, inputs + 1)
        assert inputs.shape[0] <= batch_size and inputs.shape[1] <= block_size
        scored.extend(targets.ravel().tolist())
    assert scored == list(range(1, count))


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 7), st.integers(1, 50))
def test_an_estimate_takes_that_many_different_windows(
    count: int, block_size: int, batch_size: int, max_windows: int
) -> None:
    draw = {"block_size": block_size, "batch_size": batch_size}
    rows = [row for _, b in evaluation_windows(TOKENS[:count], **draw, max_windows=max_windows) for row in b.tolist()]
    every = [row for _, b in evaluation_windows(TOKENS[:count], **draw) for row in b.tolist()]
    assert len(rows) == min(max_windows, len(every)) or len(rows) == (count - 1) // block_size
    assert len({tuple(row) for row in rows}) == len(rows) and all(row in every for row in rows)


def test_the_windows_of_an_estimate_are_spread_over_the_whole_text() -> None:
    windows = evaluation_windows(TOKENS, block_size=10, batch_size=99, max_windows=3)
    assert [inputs[:, 0].tolist() for inputs, _ in windows] == [[0, 490, 980]]


def test_too_short_a_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(CorpusError, match=r"validation split of my\.txt has 40 tokens.*at least 257.*block_size=39"):
        require_window(TOKENS[:40], 256, "the validation split of my.txt")
    require_window(TOKENS[:257], 256, "it")
    with pytest.raises(CorpusError, match=r"has 1 token; .*use a longer text"):
        require_window(TOKENS[:1], 8, "it")
    with pytest.raises(CorpusError):
        sample_batch(TOKENS[:8], batch_size=1, block_size=8, seed=0, step=0)
    with pytest.raises(CorpusError):
        next(evaluation_windows(TOKENS[:1], block_size=8, batch_size=1))
