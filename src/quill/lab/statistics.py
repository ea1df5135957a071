"""Intervals of a mean by the bootstrap: no assumption about the distribution, deterministic in the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quill.errors import ConfigError

DRAWS = 10_000
CHUNK = 1 << 22  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with probability `level`."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(values_N: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of the values and its percentile bootstrap interval.

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. Fewer than two values, or one that is not
    finite, are a ConfigError.
    """
    values_N = np.asarray(values_N, np.float64).ravel()
    if len(values_N) < 2 or not np.isfinite(values_N).all():
        raise ConfigError(f"{len(values_N)} values have no interval: at least 2 finite ones are needed")
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(values_N))
    means = np.empty(draws)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        means[start : start + count] = values_N[generator.integers(0, len(values_N), (count, len(values_N)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_N.mean()), float(low), float(high), level)


def paired_difference(
    after_N: np.ndarray, before_N: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the interval of the mean of after - before, both measured on the same N items."""
    after_N, before_N = np.asarray(after_N, np.float64), np.asarray(before_N, np.float64)
    if after_N.shape != before_N.shape:
        raise ConfigError(
            f"values of shapes {after_N.shape} and {before_N.shape} are not paired: measure the same items"
        )
    return bootstrap_interval(after_N - before_N, level=level, draws=draws, seed=seed)
