"""Time: rounds of several measurements in turn, and how busy the machine was.

Other programs make a measurement longer, never shorter. So each figure of a round is the fastest of several repeats,
and measurements that are compared are taken in turn, round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def fastest(function: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of so many calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def rounds(
    measurements: Mapping[Key, Callable[[], float]], count: int, on_round: Callable[[int, int], None]
) -> dict[Key, np.ndarray]:
    """Take all measurements in turn, `count` times; return seconds_R of each. One round before them is not counted."""
    taken: dict[Key, list[float]] = {name: [] for name in measurements}
    for number in range(count + 1):
        on_round(number, count)
        for name, measure in measurements.items():
            seconds = measure()
            if number:
                taken[name].append(seconds)
    return {name: np.array(values) for name, values in taken.items()}


class Load:
    """The share of the processor time of `threads` cores that this process got since the object was made."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._wall, self._processor = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._wall

    @property
    def processor_seconds(self) -> float:
        """Seconds of processor time, over all threads."""
        return time.process_time() - self._processor
