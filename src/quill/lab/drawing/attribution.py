"""The picture of an attribution: heads as a map of layer and head, all other parts as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import DIVERGING, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UP, DOWN = "#E66101", "#5E3C99"  # the ends of the map's colours


def draw_attribution(names: Sequence[str], values_P: np.ndarray, n_head: int, title: str) -> Figure:
    """Return the picture. Names are those of `ResidualParts`."""
    heads = {name: value for name, value in zip(names, values_P, strict=True) if name.startswith("head ")}
    others = [(n, v) for n, v in zip(names, values_P, strict=True) if n not in heads and v]
    layers = sorted({int(name.split()[1].split(".")[0]) for name in heads})
    with style():
        height = max(3.2, 0.42 * max(len(layers), len(others)) + 1.2)
        figure, (left, right) = new_figure(1, 2, height=height, width_ratios=(1.2, 1))
        map_LH = np.full((len(layers), n_head), np.nan)
        for name, value in heads.items():
            layer, head = map(int, name.split()[1].split("."))
            map_LH[layers.index(layer), head] = value
        limit = max(float(np.abs(values_P).max()), 1e-9)
        image = left.imshow(map_LH, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        for (layer, head), value in np.ndenumerate(map_LH):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * limit else "black"
                left.text(head, layer, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)
        left.set_xticks(range(n_head))
        left.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        left.set_xlabel("head")
        left.set_ylabel("layer")
        left.set_title("attention heads")
        figure.colorbar(image, ax=left, shrink=0.8, label="logits added")
        labels, values = [n.replace("_", "-") for n, _ in others], [v for _, v in others]
        right.barh(range(len(others)), values, color=[UP if v > 0 else DOWN for v in values])
        right.set_yticks(range(len(others)), labels)
        right.invert_yaxis()
        right.axvline(0, color="black", linewidth=0.8)
        right.margins(x=0.2)
        for at, value in enumerate(values):
            right.annotate(f"{value:+.2f}", (value, at), (4 if value > 0 else -4, 0), textcoords="offset points",
                           ha="left" if value > 0 else "right", va="center", fontsize=8)  # fmt: skip
        right.set_xlabel("logits added")
        right.set_title("other parts")
        figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure
