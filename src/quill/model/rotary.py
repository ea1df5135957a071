"""Constants of rotary position embeddings, usable without PyTorch."""

from __future__ import annotations

ROPE_BASE = 1024
"""Ratio of the highest frequency to the lowest: the first pair of a head rotates by 1 radian per token, the last by
1 / ROPE_BASE."""


def rotary_frequencies(size: int) -> list[float]:
    """Return the frequency of each pair of a head of this size, from 1 to 1 / ROPE_BASE in a geometric series."""
    pairs = size // 2
    return [ROPE_BASE ** (-pair / max(1, pairs - 1)) for pair in range(pairs)]
