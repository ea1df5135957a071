"""The picture of the communication experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quill.experiments.experiment import Result
from quill.lab.drawing.style import CATEGORIES, MAGNITUDE, NEUTRAL, label_tokens, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 16
"""Tokens of the text in the maps."""


def draw_communication(result: Result) -> Figure:
    """Return the figure: four maps of one text, and the loss over the context."""
    figures = result.figures
    with style():
        figure, axes = new_figure(2, 3, height=6.4)
        names = {"influence": "Influence", "without attention": "Influence without attention"}
        names |= {name: name[0].upper() + name[1:] for name in figures["rank_correlations"]}
        for place, (name, title) in zip(axes.flat, names.items(), strict=False):
            if name in figures["rank_correlations"]:
                title += f"\nrank correlation {np.mean(figures['rank_correlations'][name]):.2f}"
            else:
                title += "\nKL, nats" if name == "influence" else "\nnothing off the diagonal"
            draw_map(place, np.array(figures["maps"][name]), figures["labels"], title)
        draw_losses(axes[1, 2], result)
        figure.supylabel("position of the prediction", fontsize=10)
    return figure


def draw_map(axes: Axes, map_TS: np.ndarray, labels: list[str], title: str) -> None:
    """Draw the first part of a map, each row by its largest value before the diagonal."""
    shown = map_TS[:SHOWN, :SHOWN]
    below = np.tril(shown, -1)
    top = np.quantile(below[below > 0], 0.97) if (below > 0).any() else shown.max()
    image = np.where(np.tril(np.ones_like(shown)) > 0, shown, np.nan)
    axes.imshow(image, cmap=MAGNITUDE, vmin=0, vmax=top)
    label_tokens(axes, labels[:SHOWN])
    axes.set_title(title)


def draw_losses(axes: Axes, result: Result) -> None:
    """Draw the loss over the length of the context, with lines for tables of counts."""
    figures = result.figures
    lengths = figures["lengths"]
    means = [interval.mean for interval in figures["losses"]]
    axes.fill_between(
        lengths, [i.low for i in figures["losses"]], [i.high for i in figures["losses"]], color=CATEGORIES[0],
        alpha=0.25, linewidth=0,
    )  # fmt: skip
    axes.plot(lengths, means, "o-", color=CATEGORIES[0], ms=4, label="this model")
    axes.plot([1], [figures["trained_with_one_token"]], "D", color=CATEGORIES[3], ms=6, label="trained with w = 1")
    axes.axhline(figures["unigram"], color=NEUTRAL, ls=":", label="counts of tokens")
    axes.axhline(figures["bigram"], color=NEUTRAL, ls="--", label="counts of pairs")
    axes.set(xscale="log", xlabel="w: tokens that may be seen", title="Loss, nats per token")
    axes.set_xticks(lengths[::2], [str(length) for length in lengths[::2]])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.75 * (high - low))
    axes.legend(loc="upper right")
