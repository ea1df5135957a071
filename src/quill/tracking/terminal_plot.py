"""A loss curve made of characters, for the live display of a run.

Each cell is a braille character: two dots wide and four high, set bit by bit above U+2800 (Unicode, chapter 21).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.text import Text

TRAINING, VALIDATION, QUIET = "cyan", "yellow", "bright_black"
# The dots of a braille cell, by row and column, as bits above U+2800.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw_curve(
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    *,
    width: int,
    height: int,
    last_step: int,
) -> list[Text]:
    """Return `height` lines with both losses over the steps 0 to `last_step`; the axis shows the range of losses."""
    losses = [loss for _, loss in (*training, *validation) if math.isfinite(loss)]
    if not losses:
        return [Text("") for _ in range(height)]
    low, high = min(losses), max(losses)
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    margin = max(map(len, labels.values())) + 1
    columns = max(1, width - margin - 1)
    cells: dict[tuple[int, int], int] = {}
    styles: dict[tuple[int, int], str] = {}
    for points, style in ((training, TRAINING), (validation, VALIDATION)):
        for x, y in _dots(points, columns * 2, height * 4, last_step, low, high):
            cell = (y // 4, x // 2)
            cells[cell] = cells.get(cell, 0) | _DOTS[y % 4][x % 2]
            styles[cell] = style
    lines = []
    for row in range(height):
        line = Text(f"{labels.get(row, ''):>{margin}}│", style=QUIET)
        for column in range(columns):
            dots = cells.get((row, column))
            line.append(chr(0x2800 + dots) if dots else " ", style=styles.get((row, column), ""))
        line.rstrip()
        lines.append(line)
    return lines


def _dots(
    points: Sequence[tuple[int, float]], width: int, height: int, last_step: int, low: float, high: float
) -> Iterable[tuple[int, int]]:
    """Yield the dots (column, row from the top) of a line through the points, filled in between them."""
    span = max(high - low, 1e-9)
    placed = [
        (round(min(1.0, step / max(1, last_step)) * (width - 1)), round((high - loss) / span * (height - 1)))
        for step, loss in points
        if low <= loss <= high
    ]
    for (x0, y0), (x1, y1) in zip(placed, placed[1:] or placed, strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(steps + 1):
            yield round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
