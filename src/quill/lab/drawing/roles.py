"""A map of the heads of a model: colour is the role, size the loss that a head is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "previous token": "#0072B2",
    "induction": "#D55E00",
    "same token": "#E69F00",
    "self": "#56B4E9",
    "first token": "#F0E442",
    "fixed offset": "#009E73",
    "none": "#DDDDDD",
}
CLASS_COLOUR = "#CC79A7"
SMALLEST, LARGEST = 0.62, 0.94  # side of a square, in cells


def draw_roles(
    roles: Sequence[Sequence[str]],
    names: Sequence[Sequence[str]],
    strength_LH: np.ndarray,
    cost_LH: np.ndarray | None,
    *,
    title: str,
) -> Figure:
    """Draw a square for each head. Without costs all are of one size."""
    from matplotlib.patches import Patch, Rectangle

    L, H = strength_LH.shape
    if cost_LH is None:
        sides_LH = np.full((L, H), LARGEST)
    else:
        share_LH = np.nan_to_num(np.clip(cost_LH, 0, None)) / max(float(np.nanmax(cost_LH)), 1e-9)
        sides_LH = SMALLEST + (LARGEST - SMALLEST) * np.sqrt(share_LH)
    with style():
        figure, axes = new_figure(height=1.9 + 0.95 * L, width=max(5.5, min(12.0, 1.6 + 1.2 * H)))
        for layer in range(L):
            for head in range(H):
                role, side = roles[layer][head], float(sides_LH[layer, head])
                colour = COLOURS.get(role, CLASS_COLOUR)
                axes.add_patch(Rectangle((head - side / 2, layer - side / 2), side, side, color=colour, linewidth=0))
                dark = role in ("previous token", "induction", "fixed offset")
                name = names[layer][head]
                text = f"{name if len(name) <= 11 else name.replace(' ', chr(10), 1)}\n{strength_LH[layer, head]:.2f}"
                if cost_LH is not None and np.isfinite(cost_LH[layer, head]):
                    text += f"\n{cost_LH[layer, head]:+.3f}"
                axes.text(head, layer, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axes.set(xlim=(-0.5, H - 0.5), ylim=(L - 0.5, -0.5), xticks=range(H), yticks=range(L))
        axes.set(xlabel="head", ylabel="layer")
        found = {COLOURS.get(role, CLASS_COLOUR): role if role in COLOURS else "a class of characters"
                 for row in roles for role in row}  # fmt: skip
        handles = [Patch(color=colour, label=label) for colour, label in found.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        lines = "second line: strength of the role, from 0 (uniform attention) to 1"
        if cost_LH is not None:
            lines += "\nsize and third line: loss added without the head, nats per token"
        axes.set_title(f"{title}\n{lines}")
        return figure
