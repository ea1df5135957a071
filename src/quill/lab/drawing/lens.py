"""The grid of a lens: positions to the right, layers upwards, the predicted token in each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quill.lab.drawing.style import MAGNITUDE, new_figure, style, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quill.lab.lens import Lens

MOST_POSITIONS = 40


def draw_lens(found: Lens) -> Figure:
    """Return the picture; of a long text the last `MOST_POSITIONS` positions."""
    T = len(found.labels)
    first = max(0, T - MOST_POSITIONS)
    rows = len(found.best_RT)
    with style():
        figure, axes = new_figure(height=0.36 * rows + 1.5)
        shown_RT = found.probability_RT[::-1, first:]
        image = axes.imshow(shown_RT, cmap=MAGNITUDE, vmin=0, vmax=1, aspect="auto")
        for row, best_T in enumerate(found.best_RT[::-1, first:]):
            for at, best in enumerate(best_T):
                position = first + at
                right = position + 1 < T and found.vocabulary[best] == found.labels[position + 1]
                axes.text(
                    at, row, visible(found.vocabulary[best]), ha="center", va="center", fontsize=9,
                    color="black" if shown_RT[row, at] > 0.55 else "white", fontweight="bold" if right else "normal",
                )  # fmt: skip
        names = [*found.readings]
        names[-1] = f"{names[-1]} (the model)"
        axes.set_yticks(range(rows), names[::-1])
        axes.set_xticks(range(T - first), [visible(label) for label in found.labels[first:]])
        axes.tick_params(length=0)
        axes.set_xlabel("token that was read" + (f" (the last {T - first} of {T})" if first else ""))
        axes.set_title(f"{found.title} (bold: it is what follows)")
        figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    return figure
