"""Maps of what a token attends to or depends on: queries down, keys to the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import MAGNITUDE, WIDTH, label_tokens, new_figure, style, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 880
"""Cells from the left to the right of a grid of maps: as many as the picture has pixels."""


def draw_map(map_TS: np.ndarray, labels: Sequence[str], title: str, value: str = "share of the row") -> Figure:
    """Return one map with its tokens, and a scale. Cells that no token may see are left white."""
    with style():
        figure, axes = new_figure(height=6.6, width=7.4)
        image = show_map(axes, map_TS)
        label_tokens(axes, labels)
        axes.set_xlabel("token that is read")
        axes.set_ylabel("token that reads")
        axes.set_title(title)
        figure.colorbar(image, ax=axes, shrink=0.8, label=value)
    return figure


def draw_map_grid(maps: Mapping[str, np.ndarray], labels: Sequence[str], title: str) -> Figure:
    """Return small maps in a grid: a row for each layer where the names are "layer.head".

    All of them are one image, because an axes for each takes a second. Each map has its own scale. Where a map has more
    cells than the picture has pixels, each pixel shows the largest of its cells.
    """
    names = list(maps)
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(name.split(".")[0], []).append(name)
    columns = max(map(len, rows.values()))
    if columns == 1:  # one map a layer: wrap them
        columns = min(4, len(names))
        rows = {str(i): names[i : i + columns] for i in range(0, len(names), columns)}
    side = math.ceil(columns * len(labels) / MOST_CELLS)
    maps = {name: largest_of_squares(map_TS, side) for name, map_TS in maps.items()}
    T = len(maps[names[0]])
    gap, head = max(2, T // 16), max(3, T // 6)
    width, height = T + gap, T + head
    colours = colour_table()
    canvas = np.full((len(rows) * height, columns * width, 3), 255, np.uint8)
    lower_TS = np.tril(np.ones((T, T), bool))
    where = [(name, row * height + head, column * width) for row, line in enumerate(rows.values())
             for column, name in enumerate(line)]  # fmt: skip
    for name, top, left in where:
        scaled_TS = np.sqrt(maps[name] / max(float(maps[name].max()), 1e-9))
        canvas[top : top + T, left : left + T][lower_TS] = colours[(scaled_TS[lower_TS] * 255).astype(np.uint8)]
    with style():
        inches = min(12.0, WIDTH * canvas.shape[0] / canvas.shape[1]) + 0.9
        figure, axes = new_figure(height=inches, layout="none")  # a layout engine would draw it twice
        figure.subplots_adjust(0.03, 0.35 / inches, 0.99, 1 - 0.35 / inches)
        axes.imshow(canvas)
        for name, top, left in where:
            axes.text(left + T / 2, top - head / 8, name, ha="center", va="bottom", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        start = "".join(map(visible, labels[:24])) + ("…" if len(labels) > 24 else "")
        axes.set_title(f"{title}: “{start}”, {len(labels)} tokens")
        axes.set_xlabel(f"token that is read →   ({'layer.head' if '.' in names[0] else 'layer'} above each map)")
        axes.set_ylabel("← token that reads")
    return figure


def show_map(axes: Axes, map_TS: np.ndarray):
    """Draw one lower triangle into axes and return the image. Colours follow the square root, so small shares show."""
    from matplotlib.colors import PowerNorm

    shown_TS = np.ma.masked_array(map_TS, np.triu(np.ones(map_TS.shape, bool), 1))
    return axes.imshow(shown_TS, cmap=MAGNITUDE, norm=PowerNorm(0.5, 0, max(float(map_TS.max()), 1e-9)), aspect="equal")


def largest_of_squares(map_TS: np.ndarray, side: int) -> np.ndarray:
    """Return the largest value in each square of `side` x `side` cells; squares at the edges may be cut off."""
    starts = np.arange(0, len(map_TS), side)
    return np.maximum.reduceat(np.maximum.reduceat(map_TS, starts, 0), starts, 1) if side > 1 else map_TS


def colour_table() -> np.ndarray:
    """Return the 256 colours of magnitudes as bytes, shape (256, 3)."""
    import matplotlib

    return matplotlib.colormaps[MAGNITUDE](np.arange(256), bytes=True)[:, :3]
