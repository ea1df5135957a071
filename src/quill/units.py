"""Sizes, counts and durations as text."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Return a number of bytes in decimal units: 812 B, 3.2 MB, 870 MB, 5.1 GB."""
    units = [("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)]
    unit, each = next((pair for pair in units if abs(size) < 999.5 * pair[1]), units[-1])
    digits = 1 if unit != "B" and abs(size) < 99.95 * each else 0
    return f"{size / each:.{digits}f} {unit}"


def format_count(count: int) -> str:
    """Return a number of parameters: 4,336, 0.80 M, 10.65 M."""
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:.2f} M"


def format_duration(seconds: float) -> str:
    """Return a duration: 35 ms, 4.2 s, 58 s, 1 min 05 s, 2 h 10 min."""
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.001 else 1}f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    return _whole_seconds(seconds)


def format_time_left(seconds: float) -> str:
    """Return how long a run will still take: under 1 s left, 5 s left, 1 min 05 s left."""
    return f"{_whole_seconds(seconds) if seconds >= 1 else 'under 1 s'} left"


def _whole_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
