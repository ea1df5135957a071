"""Trackers: callables that take the events of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]

Consumer = Callable[[Event], object]


def fan_out(*consumers: Consumer | None) -> Consumer:
    """Return one callable that hands each event to all consumers, in order; None stands for nobody."""
    present = [consumer for consumer in consumers if consumer is not None]

    def report(event: Event) -> None:
        for consumer in present:
            consumer(event)

    return report


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
