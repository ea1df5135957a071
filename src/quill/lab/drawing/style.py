"""The style of all pictures: sizes that are readable at 800 pixels, colours that colour-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0
"""Width of a picture in inches; at 110 dots per inch this is 880 pixels."""

MAGNITUDE = "cividis"
DIVERGING = "PuOr_r"
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""Okabe & Ito 2008, "Color Universal Design"."""
NEUTRAL = "#888888"

_RC: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "axes.unicode_minus": False,
}
_VISIBLE = {"\n": "⏎", " ": "␣", "\t": "⇥", "\r": "↵", "": "∅"}


def visible(text: str) -> str:
    """Return the text of a token with blanks and control characters shown as symbols."""
    return "".join(_VISIBLE.get(c, c if c.isprintable() else "�") for c in text) if text else _VISIBLE[""]


@contextmanager
def style() -> Iterator[None]:
    """Apply the style inside the block. It changes no setting outside, and needs no display."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 4.0,
    width: float = WIDTH,
    layout: Any = "constrained",
    **options: Any,
) -> tuple[Figure, Any]:
    """Return a figure and its axes, as `matplotlib.pyplot.subplots` does, without pyplot and its global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, **options)


def label_tokens(axes: Axes, labels: Sequence[str], *, x: bool = True, y: bool = True, most: int = 64) -> None:
    """Label the cells of an axis with tokens; where they would overlap, with positions."""
    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if not wanted:
            axis.set_ticks([])
        elif len(labels) <= most:
            axis.set_ticks(
                range(len(labels)), [visible(label) for label in labels], fontsize=9 if len(labels) <= 32 else 7
            )
            axis.set_tick_params(length=0)
