"""Pictures of losses with and without a part, and of costs with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import NEUTRAL, new_figure, style
from quill.lab.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_before_and_after(before_N: np.ndarray, after_N: np.ndarray, cost: Interval, title: str, colour: str) -> Figure:
    """Draw the loss of each window of text with a part removed against that of the whole model."""
    low, high = min(before_N.min(), after_N.min()), max(before_N.max(), after_N.max())
    with style():
        figure, axes = new_figure(height=4.8, width=6.0)
        axes.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, label="no change")
        axes.scatter(before_N, after_N, s=18, color=colour, alpha=0.7, label="a window of the text")
        axes.set_xlabel("loss of the whole model, nats per token")
        axes.set_ylabel("loss with the part removed, nats per token")
        axes.set_title(f"{shorten(title, 60)}\n95 % interval {interval_text(cost)}")
        axes.legend(loc="best")
        return figure


def draw_costs(
    names: Sequence[str],
    costs: Sequence[Interval],
    colours: Sequence[str],
    *,
    title: str,
    label: str,
    legend: Mapping[str, str] | None = None,
) -> Figure:
    """Draw horizontal bars from the top down, each with its interval. `legend` maps colours to their meaning."""
    means = np.array([cost.mean for cost in costs])
    errors = np.abs(np.array([[cost.low for cost in costs], [cost.high for cost in costs]]) - means)
    with style():
        figure, axes = new_figure(height=1.5 + 0.24 * len(names))
        whiskers = {"elinewidth": 1, "ecolor": "#333333", "capsize": 2}
        axes.barh(list(names), means, xerr=errors, color=list(colours), error_kw=whiskers)
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        for colour, meaning in (legend or {}).items():
            axes.barh([names[0]], [0], color=colour, label=meaning)
        if legend:
            axes.legend(loc="lower right")
        axes.set_xlabel(label)
        axes.set_title(title)
        return figure


def interval_text(interval: Interval) -> str:
    """Return an interval for a title."""
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def shorten(text: str, most: int = 72) -> str:
    """Return a text cut in its middle to at most `most` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
