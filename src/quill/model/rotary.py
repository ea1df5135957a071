"""Constants of rotary position embeddings, usable without PyTorch."""

from __future__ import annotations

SLOWEST = 1024  # tokens in which the slowest pair of a modern model's rotary position turns by one radian


def rotary_frequencies(size: int) -> list[float]:
    """Return by how many radians a token turns each pair of a head of this size: 1 to 1 / SLOWEST, in equal ratios."""
    pairs = size // 2
    return [SLOWEST ** (-pair / max(1, pairs - 1)) for pair in range(pairs)]
