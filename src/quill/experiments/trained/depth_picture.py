"""The picture of the experiment depth-stability: gradients before training, and losses over depth × learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quill.experiments.experiment import Result

SHOWN = (1e-4, 1e6)
"""Gradient norms and sizes that are shown; beyond, lines leave the picture."""
TITLES = {"pre": "pre-norm", "post": "post-norm", "none": "no norm"}


def draw(result: Result) -> Figure:
    """Return the picture: above, gradient and size of the stream by layer; below, the loss of each cell."""
    from matplotlib.figure import Figure

    from quill.experiments.picture import draw_effects
    from quill.lab.drawing.style import CATEGORIES, MAGNITUDE, WIDTH, style

    figures = result.figures
    deepest = max(start["depth"] for start in figures["start"])
    rates = [f"{rate:.1g}".removeprefix("0") for rate in figures["learning_rates"]]
    rows = [(True, depth) for depth in sorted({cell["depth"] for cell in figures["cells"]})]
    rows.append((False, rows[-1][1]))
    labels = [f"{depth} layer{'s' * (depth > 1)}{'' if careful else ',' + chr(10) + 'bare'}" for careful, depth in rows]
    found = {(cell["warm_up_and_scaling"], cell["norm"], cell["depth"]): cell for cell in figures["cells"]}
    worst, best = figures["ln_V"], min(np.nanmin(cell["loss"]) for cell in figures["cells"])
    with style():
        figure = Figure(figsize=(WIDTH, 8.0), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[2.3, 1])
        upper, lower = halves
        axes = upper.subplots(2, 3, height_ratios=[1, 1.15])
        image = None
        for column, (norm, title) in enumerate(TITLES.items()):
            above, grid = axes[0, column], axes[1, column]
            for start in figures["start"]:
                if start["norm"] == norm and start["depth"] == deepest:
                    line = "-" if start["scaling"] else ":"
                    gradient, rms = np.asarray(start["gradient_norm"]), np.asarray(start["rms"])[1:]
                    above.plot(range(1, deepest + 1), gradient, line, color=CATEGORIES[3], label="gradient norm")
                    above.plot(range(1, deepest + 1), rms, line, color=CATEGORIES[0], label="RMS of the stream")
            above.set_yscale("log", nonpositive="mask")
            above.set_title(f"{title}, untrained")
            above.set_xlabel(f"layer, of {deepest}")
            losses = np.array([finite_or_infinite(found[careful, norm, depth]["loss"]) for careful, depth in rows])
            image = grid.imshow(np.minimum(losses, worst), cmap=MAGNITUDE + "_r", vmin=best, vmax=worst, aspect="auto")
            for (row, column_), loss in np.ndenumerate(losses):
                bad = bool(found[(rows[row][0], norm, rows[row][1])]["diverged"][column_])
                dark = min(loss, worst) > (worst + best) / 2
                text = "×" if bad or not np.isfinite(loss) else f"{loss:.2f}"
                grid.text(column_, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
            grid.set_xticks(range(len(rates)), rates)
            grid.set_yticks(range(len(rows)), labels if column == 0 else [""] * len(rows))
            grid.set_title(f"{title}, trained")
            grid.set_xlabel("learning rate")
        for axis in axes[0]:
            axis.set_ylim(SHOWN)
            axis.tick_params(labelleft=axis is axes[0, 0])
        handles, names = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].legend(handles[:2], names[:2], loc="upper left")
        note = "dotted: without the\nfactor 1/√(2L)"
        axes[0, 1].text(0.05, 0.95, note, transform=axes[0, 1].transAxes, fontsize=9, va="top")
        assert image is not None
        upper.colorbar(image, ax=axes[1].tolist(), label="validation loss, nats", aspect=14)
        bottom = lower.subplots()
        nats = [each for each in (*result.effects, *result.controls) if each.unit == "nats"]
        draw_effects(bottom, nats)
        lower.supxlabel(
            "loss of the other minus that of pre-norm, mean over learning rates, nats; the first two rows decide\n"
            "(dashed: margin; ×: a seed diverged, or is worse than a guess; bare: no warm-up, no factor)",
            fontsize=10,
        )
        figure.suptitle(f"“LayerNorm before each part stabilises depth”: {result.verdict}", fontsize=11)
    return figure


def finite_or_infinite(values: object) -> np.ndarray:
    """Return the values as floats; NaN counts as infinite."""
    array = np.asarray(values, float)
    return np.where(np.isfinite(array), array, np.inf)
