"""Pictures of curves with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quill.lab.drawing.style import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A line, with a band if its lower and upper limits are given. A curve without a name is not in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def draw_curves(curves: Sequence[Curve], *, title: str, x: str, y: str, height: float = 4.2) -> Figure:
    """Draw curves over one another."""
    with style():
        figure, axes = new_figure(height=height)
        for curve in curves:
            axes.plot(curve.x, curve.y, color=curve.colour, marker="o", markersize=3.5, label=curve.name or "_")
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, curve.low, curve.high, color=curve.colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.legend(loc="best")
        return figure
