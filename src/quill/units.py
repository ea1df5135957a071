"""Sizes and durations as people write them."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Return a size as people say it: 870 MB, 5.1 GB."""
    return f"{size / 1e9:.1f} GB" if abs(size) >= 999.5e6 else f"{size / 1e6:.0f} MB"


def format_duration(seconds: float) -> str:
    """Return a time as people say it: 8 s, 1 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
