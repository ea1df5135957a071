"""Pictures of what parts of a model are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quill.lab.ablation.targets import Head
from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style
from quill.lab.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quill.lab.ablation.cost import Ablation, JointCost, PartCosts

MOST_BARS = 48


def draw_ablation(result: Ablation) -> Figure:
    """Draw the loss of each window with the part against that without it."""
    with style():
        figure, axes = new_figure(height=4.6, width=5.6)
        low = min(result.intact_N.min(), result.ablated_N.min())
        high = max(result.intact_N.max(), result.ablated_N.max())
        axes.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, label="no change")
        axes.scatter(result.intact_N, result.ablated_N, s=18, color=CATEGORIES[0], alpha=0.7, label="a window of text")
        axes.set_xlabel("loss of the whole model, nats per token")
        axes.set_ylabel("loss with the part removed, nats per token")
        axes.set_title(f"{shorten(result.title)}\n95 % interval {interval_text(result.cost)}, by {result.method}")
        axes.legend(loc="lower right")
        return figure


def draw_part_costs(result: PartCosts) -> Figure:
    """Draw a bar for each part, the most costly first; heads and other parts differ in colour."""
    rows = sorted(zip(result.targets, result.costs, strict=True), key=lambda row: -row[1].mean)
    shown = rows[:MOST_BARS]
    with style():
        figure, axes = new_figure(height=1.4 + 0.22 * len(shown))
        colours = [CATEGORIES[0] if isinstance(target, Head) else CATEGORIES[1] for target, _ in shown]
        draw_bars(axes, [str(target) for target, _ in shown], [cost for _, cost in shown], colours)
        if len({*colours}) > 1:
            for colour, name in ((CATEGORIES[0], "attention head"), (CATEGORIES[1], "feed-forward or layer")):
                axes.barh([0], [0], color=colour, label=name)
            axes.legend(loc="lower right")
        axes.set_xlabel("loss added when it alone is removed, nats per token")
        more = f"; the {MOST_BARS} largest of {len(rows)}" if len(rows) > MOST_BARS else ""
        axes.set_title(f"What each part is worth, by {result.method} ablation{more}")
        return figure


def draw_joint_cost(result: JointCost) -> Figure:
    """Draw the cost of each part alone, their sum, and their joint cost."""
    names = [*result.targets, "sum of these", "removed together"]
    costs = [*result.single, result.sum_of_single, result.joint]
    with style():
        figure, axes = new_figure(height=1.6 + 0.28 * len(names))
        draw_bars(axes, names, costs, [CATEGORIES[0]] * len(result.targets) + [NEUTRAL, CATEGORIES[3]])
        axes.set_xlabel("loss added, nats per token")
        axes.set_title(f"{result.title}\njoint - sum: {interval_text(result.difference)}")
        return figure


def draw_bars(axes: Axes, names: list[str], costs: list[Interval], colours: list[str]) -> None:
    """Draw horizontal bars from the top down, each with its interval."""
    means = np.array([cost.mean for cost in costs])
    errors = np.abs(np.array([[cost.low for cost in costs], [cost.high for cost in costs]]) - means)
    axes.barh(names, means, xerr=errors, color=colours, error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2})
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(y=0.01)


def interval_text(interval: Interval) -> str:
    """Return an interval for a title."""
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def shorten(text: str, most: int = 72) -> str:
    """Return a text cut in its middle to at most `most` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
