"""The permutation that needs no memory: each number once, in an order that looks random and differs for other keys."""

import numpy as np
import pytest

from quill.data.permutation import ROUNDS, permute


def keys(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=ROUNDS, dtype=np.uint64)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 65_536, 65_537, 1_000_003])
def test_every_number_has_one_image_and_every_image_one_number(count: int) -> None:
    images = permute(np.arange(count), count, keys(0))
    assert images.dtype == np.int64 and np.array_equal(np.sort(images), np.arange(count))


def test_an_image_does_not_depend_on_the_numbers_beside_it() -> None:
    every = permute(np.arange(1000), 1000, keys(1))
    assert [int(permute(np.array([i]), 1000, keys(1))[0]) for i in range(1000)] == every.tolist()


def test_other_keys_are_another_order() -> None:
    orders = {tuple(permute(np.arange(50), 50, keys(seed)).tolist()) for seed in range(100)}
    assert len(orders) == 100


def test_each_place_gets_each_number_equally_often() -> None:
    images_KN = np.stack([permute(np.arange(5), 5, keys(seed)) for seed in range(1000)])
    counts = np.stack([np.bincount(images_KN[:, place], minlength=5) for place in range(5)])
    assert abs(counts - 200).max() < 64  # five standard deviations


def test_neighbours_are_no_neighbours_any_more() -> None:
    count = 10**6
    images = permute(np.arange(count), count, keys(2))
    correlation = np.corrcoef(images[:-1], images[1:])[0, 1]
    assert abs(correlation) < 0.005  # five standard deviations
    assert np.count_nonzero(abs(np.diff(images)) == 1) < 20  # 2 are expected
