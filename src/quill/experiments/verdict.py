"""Verdicts, computed from intervals: a claim predicts the sign of an effect, and the interval says whether it is there.

An effect is a difference that is positive where the claim holds. Its margin, the least size that matters, is named
before anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quill.errors import ConfigError
from quill.lab.statistics import DRAWS, Interval, bootstrap_interval

Verdict = Literal["supported", "not here", "unclear"]


@dataclass(frozen=True)
class Effect:
    """A difference with its interval, positive where the claim holds, and the least size that matters."""

    name: str
    """what is compared, in a few words"""
    interval: Interval
    margin: float
    unit: str = "nats"

    @property
    def verdict(self) -> Verdict:
        """Supported if the whole interval reaches the margin, not here if the whole interval is below it."""
        if self.interval.low >= self.margin:
            return "supported"
        return "not here" if self.interval.high < self.margin else "unclear"

    def __str__(self) -> str:
        value = self.interval
        return (
            f"{self.name}: {value.mean:+.3f} {self.unit} [{value.low:+.3f}, {value.high:+.3f}], "
            f"margin {self.margin:g}: {self.verdict}"
        )


def joint_verdict(effects: Sequence[Effect]) -> Verdict:
    """Return the verdict of a claim that needs all of these effects: the worst one decides."""
    if not effects:
        raise ConfigError("a verdict needs at least one effect")
    verdicts = {effect.verdict for effect in effects}
    if "not here" in verdicts:
        return "not here"
    return "unclear" if "unclear" in verdicts else "supported"


def crossed_interval(values_SN: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of values measured for S seeds on the same N windows, and its bootstrap interval.

    Seeds and windows are drawn independently of each other, because both are samples (Owen 2007, "The pigeonhole
    bootstrap"). Differences between seeds are scaled by √(S / (S - 1)), since a few seeds understate their variance
    (Davison & Hinkley 1997, section 3.2.2). With one seed only windows are drawn.
    """
    values_SN = np.atleast_2d(np.asarray(values_SN, np.float64))
    S, N = values_SN.shape
    if S == 1 or N == 1:
        return bootstrap_interval(values_SN.ravel(), level=level, draws=draws, seed=seed)
    if not np.isfinite(values_SN).all():
        raise ConfigError("values that are not finite have no interval")
    mean = values_SN.mean()
    spread_S1 = values_SN.mean(1, keepdims=True) - mean
    wider_SN = values_SN + (math.sqrt(S / (S - 1)) - 1) * spread_S1
    generator = np.random.default_rng(seed)
    seeds_RS = generator.multinomial(S, np.full(S, 1 / S), draws) / S
    windows_RN = generator.multinomial(N, np.full(N, 1 / N), draws) / N
    means_R = ((seeds_RS @ wider_SN) * windows_RN).sum(1)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high), level)


def effect(name: str, gains_SN: np.ndarray, margin: float, unit: str = "nats") -> Effect:
    """Return the effect of paired differences, measured for S seeds on the same N windows."""
    return Effect(name, crossed_interval(gains_SN), margin, unit)
