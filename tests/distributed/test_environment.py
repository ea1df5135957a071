"""The place of a process, its part of a batch, and settings of torchrun that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quill.data.windows import sample_batch
from quill.distributed.environment import (
    ONE_PROCESS,
    Ranks,
    is_first,
    next_divisible,
    part_of,
    read_ranks,
    require_divisible,
)
from quill.errors import ConfigError, ProcessGroupError

COMPLETE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def test_the_place_of_a_process_is_read_from_the_variables_of_torchrun() -> None:
    assert read_ranks(COMPLETE) == Ranks(rank=1, world_size=4, local_rank=0)
    assert read_ranks({}) == read_ranks({"RANK": "0", "WORLD_SIZE": "1"}) == ONE_PROCESS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": ""}, "RANK is set and WORLD_SIZE is not"),
        ({"RANK": ""}, "WORLD_SIZE is set and RANK is not"),
        ({"MASTER_ADDR": ""}, "RANK is set and MASTER_ADDR is not"),
        ({"RANK": "4"}, "RANK=4 must be less than WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK='-1' must be a whole number, 0 or more"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' must be a whole number, 1 or more"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 must be at most 65535"),
    ],
)
def test_settings_that_cannot_be_used_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ProcessGroupError, match=message) as caught:
        read_ranks(COMPLETE | change)
    assert caught.value.reported is False  # so that the line is printed, whatever RANK says


def test_a_process_whose_rank_is_no_number_counts_as_the_first_one() -> None:
    assert is_first({}) and is_first({"RANK": "0"}) and is_first({"RANK": "one"})
    assert not is_first({"RANK": "1"})


@given(st.integers(1, 9), st.integers(1, 8), st.booleans(), st.integers(0, 100))
def test_the_parts_of_all_ranks_are_the_batch_of_one_process_in_order(
    each: int, world_size: int, shuffled: bool, step: int
) -> None:
    tokens = np.arange(500, dtype=np.uint16)

    def batch(part: slice) -> np.ndarray:
        order = "shuffled" if shuffled else "random"
        return sample_batch(
            tokens, batch_size=each * world_size, block_size=8, seed=7, step=step, data_order=order, part=part
        )[0]

    parts = [batch(part_of(each * world_size, Ranks(rank, world_size, rank))) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), batch(slice(None)))
    assert {len(part) for part in parts} == {each}


def test_a_batch_that_cannot_be_divided_is_refused_with_the_nearest_sizes() -> None:
    require_divisible(12, 4)
    with pytest.raises(ConfigError, match="batch_size=10 cannot be divided among 4 processes: use 8 or 12"):
        require_divisible(10, 4)
    with pytest.raises(ConfigError, match="batch_size=3 cannot be divided among 4 processes: use 4"):
        require_divisible(3, 4)
    assert [next_divisible(size, 4) for size in (1, 4, 5)] == [4, 4, 8]
