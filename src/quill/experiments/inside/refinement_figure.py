"""The picture of the refinement experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.experiments.experiment import Result
from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"logit lens": (CATEGORIES[0], "o-"), "tuned lens": (CATEGORIES[3], "s-"), "shuffled weights": (NEUTRAL, "^--")}


def draw_refinement(result: Result) -> Figure:
    """Return the figure: loss, divergence and rank over the layers, cosines, and the cost of other depths."""
    figures = result.figures
    with style():
        figure, axes = new_figure(2, 2, height=6.8)
        panels = (
            (axes[0, 0], "loss", "Loss if the model stopped here", "nats per token", "linear"),
            (axes[0, 1], "kl", "Divergence of the final prediction", "KL, nats", "symlog"),
            (axes[1, 0], "rank", "Rank of the right character", "mean rank", "log"),
        )
        for place, key, title, label, scale in panels:
            for name, (color, line) in LINES.items():
                draw_line(place, figures[name][key], color, line, name)
            readings = len(figures["logit lens"][key])
            place.set_xticks(range(readings), ["embedding", *(f"block {b}" for b in range(readings - 1))])
            if scale == "symlog":
                place.set_yscale("symlog", linthresh=0.01)
                place.set_ylim(0, None)
            place.set(title=title, ylabel=label)
            if readings > 5:
                place.tick_params(axis="x", rotation=45)
        axes[1, 0].set_yscale("log")
        axes[1, 0].set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes[1, 0].minorticks_off()
        axes[0, 0].legend(loc="upper right")
        draw_blocks(axes[1, 1], figures)
    return figure


def draw_line(axes: Axes, values: Sequence[Any], color: str, line: str, label: str) -> None:
    """Draw means with their intervals."""
    x = np.arange(len(values))
    axes.fill_between(x, [v.low for v in values], [v.high for v in values], color=color, alpha=0.2, linewidth=0)
    axes.plot(x, [v.mean for v in values], line, color=color, ms=5, label=label)


def draw_blocks(axes: Axes, figures: Any) -> None:
    """Draw the loss added when a block is dropped or exchanged with the next, and the cosine of its update."""
    dropped, swapped = figures["dropped"], figures["swapped"]
    x = np.arange(len(dropped))
    for values, offset, color, label in (
        (dropped, -0.18, CATEGORIES[1], "block dropped"),
        (swapped, 0.18, CATEGORIES[2], "exchanged with the next"),
    ):
        means = np.array([v.mean for v in values])
        errors = [means - [v.low for v in values], [v.high for v in values] - means]
        axes.bar(x[: len(values)] + offset, means, 0.34, yerr=errors, color=color, label=label)
    cosines = ", ".join(f"{v.mean:+.2f}" for v in figures["cosines"])
    axes.set_xticks(x, [f"block {b}" for b in x])
    axes.set(ylabel="loss added, nats per token")
    axes.set_title(f"Other depths; cosine of updates with -∂L/∂x:\n{cosines}")
    axes.legend(loc="upper right")
