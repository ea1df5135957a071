"""The picture of the experiment depth-stability: gradients before training, and losses over depth × learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quill.experiments.experiment import Result

TITLES = {"pre": "pre-norm", "post": "post-norm", "none": "no norm"}


def draw(result: Result) -> Figure:
    """Return the picture: above, gradient and size of the stream by layer; below, the loss of each cell."""
    from quill.experiments.picture import draw_effects
    from quill.lab.drawing.style import CATEGORIES, MAGNITUDE, new_figure, style

    figures = result.figures
    deepest = max(start["depth"] for start in figures["start"])
    rates = [f"{rate:.2g}" for rate in figures["learning_rates"]]
    rows = [(True, depth) for depth in sorted({cell["depth"] for cell in figures["cells"]})]
    rows.append((False, rows[-1][1]))
    labels = [f"{depth} layers" if careful else f"{depth} layers,\nbare" for careful, depth in rows]
    found = {(cell["warm_up_and_scaling"], cell["norm"], cell["depth"]): cell for cell in figures["cells"]}
    worst, best = figures["ln_V"], min(np.nanmin(cell["loss"]) for cell in figures["cells"])
    with style():
        figure, axes = new_figure(3, 3, height=8.2, height_ratios=[1.15, 1.15, 0.9])
        image = None
        for column, (norm, title) in enumerate(TITLES.items()):
            above, grid = axes[0, column], axes[1, column]
            for start in figures["start"]:
                if start["norm"] == norm and start["depth"] == deepest:
                    line = "-" if start["scaling"] else ":"
                    gradient, rms = np.asarray(start["gradient_norm"]), np.asarray(start["rms"])[1:]
                    above.plot(range(1, deepest + 1), gradient, line, color=CATEGORIES[3], label="gradient norm")
                    above.plot(range(1, deepest + 1), rms, line, color=CATEGORIES[0], label="RMS of the stream")
            above.set_yscale("log")
            above.set_title(f"{title}, {deepest} layers, untrained")
            above.set_xlabel("layer")
            losses = np.array([finite_or_infinite(found[careful, norm, depth]["loss"]) for careful, depth in rows])
            image = grid.imshow(np.minimum(losses, worst), cmap=MAGNITUDE + "_r", vmin=best, vmax=worst, aspect="auto")
            for (row, column_), loss in np.ndenumerate(losses):
                bad = bool(found[(rows[row][0], norm, rows[row][1])]["diverged"][column_])
                dark = min(loss, worst) > (worst + best) / 2
                text = ("×" if bad else "") + (f"{loss:.2f}" if np.isfinite(loss) else "∞")
                if loss > 99:
                    text = "×"
                grid.text(column_, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
            grid.set_xticks(range(len(rates)), rates)
            grid.set_yticks(range(len(rows)), labels if column == 0 else [""] * len(rows))
            grid.set_title(f"{title}: validation loss")
            grid.set_xlabel("learning rate")
        low = min(axis.get_ylim()[0] for axis in axes[0])
        high = max(axis.get_ylim()[1] for axis in axes[0])
        for axis in axes[0]:
            axis.set_ylim(low, high)
        handles, names = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].legend(handles[:2], names[:2], loc="best")
        axes[0, 1].text(
            0.03, 0.03, "dotted: without\nthe factor 1/√(2L)", transform=axes[0, 1].transAxes, fontsize=9, va="bottom"
        )
        assert image is not None
        figure.colorbar(image, ax=axes[1].tolist(), label="nats per token", aspect=14)
        grid_spec = axes[2, 0].get_gridspec()
        for axis in axes[2]:
            axis.remove()
        bottom = figure.add_subplot(grid_spec[2, :])
        nats = [each for each in (*result.effects, *result.controls) if each.unit == "nats"]
        draw_effects(bottom, nats)
        bottom.set_xlabel(
            "loss of the other minus pre-norm at the greatest depth, mean over learning rates, nats\n"
            "(dashed: margin; the first two rows decide; bare: no warm-up, no factor; "
            "×: a seed diverged, or is worse than a guess)"
        )
        figure.suptitle(f"“LayerNorm before each part stabilises depth”: {result.verdict}", fontsize=11)
    return figure


def finite_or_infinite(values: object) -> np.ndarray:
    """Return the values as floats; one that is no number counts as infinite."""
    array = np.asarray(values, float)
    return np.where(np.isfinite(array), array, np.inf)
