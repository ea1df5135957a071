"""Cards of neurons as a picture of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 0.19  # inches
Said = Sequence[tuple[str, float]]


def draw_cards(cards: Sequence[tuple[str, Sequence[tuple[str, str, float]], Said, Said]], *, title: str) -> Figure:
    """Draw (name, contexts, raised, lowered) for each neuron."""
    mono = {"family": "DejaVu Sans Mono", "fontsize": 9}
    lines = sum(max(len(contexts), 3) + 2 for _, contexts, _, _ in cards)
    with style():
        figure, axes = new_figure(height=0.9 + LINE * lines)
        axes.set_axis_off()
        axes.set(xlim=(0, 100), ylim=(lines, 0))
        axes.set_title(
            f"{title}\na bar: the activation; the last dark character activates the neuron, the coloured one follows"
        )
        row = 0.0
        for name, contexts, raised, lowered in cards:
            axes.text(0, row + 0.5, name, fontweight="bold", va="center", fontsize=10)
            largest = max([activation for _, _, activation in contexts] + [1e-9])
            for place, (text, follower, activation) in enumerate(contexts, start=1):
                width = 12 * max(0.0, activation) / largest
                axes.barh(row + place + 0.5, width, height=0.7, left=0, color=CATEGORIES[5])
                axes.text(0.5, row + place + 0.5, f"{activation:.2f}", va="center", fontsize=9)
                shown = "".join(visible(character) for character in text)
                axes.text(52, row + place + 0.5, shown, va="center", ha="right", **mono)
                axes.text(
                    52.3,
                    row + place + 0.5,
                    visible(follower),
                    va="center",
                    color=CATEGORIES[3],
                    fontweight="bold",
                    **mono,
                )
            for place, (label, said, colour) in enumerate(
                (("raises", raised, CATEGORIES[0]), ("lowers", lowered, NEUTRAL))
            ):
                words = "  ".join(f"{visible(token)} {value:+.1f}" for token, value in said)
                axes.text(58, row + 1.5 + place * 1.5, f"{label}  {words}", va="center", color=colour, **mono)
            row += max(len(contexts), 3) + 2
        return figure
