"""The grid of a lens: positions to the right, layers upwards, the predicted token in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import MAGNITUDE, new_figure, style, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POSITIONS = 40


def draw_lens(
    predicted: Sequence[Sequence[str]],
    probability_RT: np.ndarray,
    labels: Sequence[str],
    readings: Sequence[str],
    title: str,
) -> Figure:
    """Return the picture; of a long text the last `MOST_POSITIONS` positions.

    `predicted` has the likeliest token of each reading and position, `labels` the tokens of the text.
    """
    T = len(labels)
    first = max(0, T - MOST_POSITIONS)
    rows = len(predicted)
    with style():
        figure, axes = new_figure(height=0.36 * rows + 1.5)
        shown_RT = probability_RT[::-1, first:]
        image = axes.imshow(shown_RT, cmap=MAGNITUDE, vmin=0, vmax=1, aspect="auto")
        for row, best_T in enumerate(predicted[::-1]):
            for at, best in enumerate(best_T[first:]):
                position = first + at
                right = position + 1 < T and best == labels[position + 1]
                axes.text(
                    at, row, visible(best), ha="center", va="center", fontsize=9,
                    color="black" if shown_RT[row, at] > 0.55 else "white", fontweight="bold" if right else "normal",
                    in_layout=False,
                )  # fmt: skip
        names = [*readings]
        names[-1] = f"{names[-1]} (the model)"
        axes.set_yticks(range(rows), names[::-1])
        axes.set_xticks(range(T - first), [visible(label) for label in labels[first:]])
        axes.tick_params(length=0)
        axes.set_xlabel("token that was read" + (f" (the last {T - first} of {T})" if first else ""))
        axes.set_title(f"{title} (bold: it is what follows)")
        figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    return figure
