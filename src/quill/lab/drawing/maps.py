"""Maps of what a token attends to or depends on: queries down, keys to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import MAGNITUDE, WIDTH, label_tokens, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 8


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
    """Return small maps in a grid: a row for each layer where the names are "layer.head"."""
    names = list(maps)
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(name.split(".")[0], []).append(name)
    columns = max(map(len, rows.values()))
    if columns == 1:  # one map a layer: wrap them
        columns = min(4, len(names))
        rows = {str(i): names[i : i + columns] for i in range(0, len(names), columns)}
    with style():
        size = min(2.4, WIDTH / columns)
        figure, grid = new_figure(len(rows), columns, height=size * len(rows) + 0.7, squeeze=False)
        for line, row in zip(grid, rows.values(), strict=True):
            for axes, name in zip(line, [*row, *[""] * (columns - len(row))], strict=True):
                if not name:
                    axes.set_axis_off()
                    continue
                show_map(axes, maps[name])
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_title(name, fontsize=9, loc="center", pad=2)
        start = "".join(labels[:24]).replace("\n", "⏎") + ("…" if len(labels) > 24 else "")
        which = "layer.head" if "." in names[0] else "layer"
        figure.suptitle(f"{title}: “{start}”, {len(labels)} tokens", fontsize=10.5, x=0.01, ha="left")
        figure.supxlabel(f"token that is read →   ({which} above each map)", fontsize=9)
        figure.supylabel("← token that reads", fontsize=9)
    return figure


def show_map(axes: Axes, map_TS: np.ndarray):
    """Draw one lower triangle into axes and return the image. Colours follow the square root, so small shares show."""
    from matplotlib.colors import PowerNorm

    shown_TS = np.ma.masked_array(map_TS, np.triu(np.ones(map_TS.shape, bool), 1))
    return axes.imshow(shown_TS, cmap=MAGNITUDE, norm=PowerNorm(0.5, 0, max(float(map_TS.max()), 1e-9)), aspect="equal")
