"""Constants of rotary position embeddings, usable without PyTorch."""

from __future__ import annotations

ROPE_BASE = 1024
"""Of the frequencies in radians per token: 1 for the first pair of a head, 1 / ROPE_BASE for the last."""


def rotary_frequencies(size: int) -> list[float]:
    """Return the frequency of each pair of a head of this size, from 1 to 1 / ROPE_BASE in a geometric series."""
    pairs = size // 2
    return [ROPE_BASE ** (-pair / max(1, pairs - 1)) for pair in range(pairs)]
