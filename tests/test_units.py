"""Sizes and durations as people read them."""

from __future__ import annotations

import pytest

from quill.units import format_bytes, format_count, format_duration, format_time_left


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"), (812, "812 B"), (999, "999 B"), (1000, "1.0 kB"), (3_200_000, "3.2 MB"), (99_940_000, "99.9 MB"),
        (99_960_000, "100 MB"), (870_000_000, "870 MB"), (999_600_000, "1.0 GB"), (5.1e9, "5.1 GB"), (2e12, "2.0 TB"),
        (3e15, "3000 TB"), (-1_500_000, "-1.5 MB"),
    ],
)  # fmt: skip
def test_sizes_have_two_or_three_digits_and_a_unit(size, words):
    assert format_bytes(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.0004, "0.4 ms"), (0.035, "35 ms"), (0.9996, "1 s"), (1, "1 s"), (4.2, "4.2 s"), (9.96, "10 s"),
        (58.4, "58 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min"),
        (655_200, "182 h 00 min"), (7_241_027_100, "2,011,396 h 25 min"),
    ],
)  # fmt: skip
def test_durations_have_the_digits_that_matter(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under 1 s left"), (0.642, "under 1 s left"), (1, "1 s left"), (1.2, "1 s left"), (5.1, "5 s left"),
        (59.6, "1 min 00 s left"), (132, "2 min 12 s left"), (7800, "2 h 10 min left"),
    ],
)  # fmt: skip
def test_the_time_left_is_in_whole_seconds(seconds, words):
    assert format_time_left(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(4336, "4,336"), (99_999, "99,999"), (804_096, "0.80 M"), (10_646_784, "10.65 M")]
)
def test_a_small_model_is_not_shown_as_one_without_parameters(count, words):
    assert format_count(count) == words
