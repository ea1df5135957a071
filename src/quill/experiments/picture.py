"""Parts of pictures that several experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quill.experiments.verdict import Effect
from quill.lab.drawing.style import CATEGORIES, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICT_COLORS = {"supported": CATEGORIES[0], "not here": CATEGORIES[3], "unclear": CATEGORIES[1]}
VERDICT_MARKERS = {"supported": "o", "not here": "X", "unclear": "s"}
"""Marks beside colours, so that a picture without colours can be read too."""


def draw_effects(axes: Axes, effects: Sequence[Effect], rows: Sequence[float] | None = None) -> None:
    """Draw each effect as a point with its interval, a tick at its margin, its value and its verdict.

    Rows are positions on the vertical axis; without them effects are listed from the top, with their names.
    """
    places = list(range(len(effects))) if rows is None else list(rows)
    low = min(0.0, *(each.interval.low for each in effects))
    high = max(0.0, *(each.interval.high for each in effects), *(each.margin for each in effects))
    span = (high - low) or 1.0
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    for each, row in zip(effects, places, strict=True):
        value, verdict = each.interval, each.verdict
        color = VERDICT_COLORS[verdict]
        axes.plot([value.low, value.high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(value.mean, row, VERDICT_MARKERS[verdict], color=color, markersize=7)
        axes.plot([each.margin] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1, linestyle=(0, (2, 1)))
        axes.text(high + 0.06 * span, row, f"{value.mean:+.3f} {verdict}", va="center", fontsize=9, color=color)
    axes.set_xlim(low - 0.05 * span, high + 0.75 * span)
    axes.set_ylim(max(places) + 0.6, min(places) - 0.6)
    if rows is None:
        axes.set_yticks(places, [each.name for each in effects])
    else:
        axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
