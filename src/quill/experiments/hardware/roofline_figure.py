"""The picture of the roofline experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quill.experiments.hardware.roofline_points import Point, Roof, knees_R
from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"float32": CATEGORIES[0], "int8": CATEGORIES[3]}
MARKERS = {"linear": "o", "attention": "s", "prompt": "^", "training": "*"}
NAMES = {
    "linear": "generate: linear maps, B texts",
    "attention": "generate: attention",
    "prompt": "read a prompt",
    "training": "training step",
}


def draw_roofline(roofs: dict[str, Roof], points: list[Point]) -> Figure:
    """Return the figure: the roofline of both number formats, and the time of a step over the batch below it."""
    with style():
        figure, (top, bottom) = new_figure(2, 1, height=8.2, gridspec_kw={"height_ratios": [3, 2]})
        draw_roofs(top, roofs, points)
        draw_steps(bottom, roofs, points)
    return figure


def draw_roofs(axes: Axes, roofs: dict[str, Roof], points: list[Point]) -> None:
    """Draw speed over intensity: each roof, and each piece of work."""
    intensities = np.array([point.work.intensity for point in points])
    x = np.geomspace(intensities.min() / 2, intensities.max() * 2, 200)
    for dtype, roof in roofs.items():
        axes.plot(x, np.minimum(roof.peak, x * roof.bandwidth) / 1e9, color=COLORS[dtype], lw=2)
        axes.annotate(
            f"{dtype}: {roof.peak / 1e9:.0f} G op/s, {roof.bandwidth / 1e9:.0f} GB/s",
            (x[-1], roof.peak / 1e9), xytext=(0, 4), textcoords="offset points", ha="right", va="bottom",
            color=COLORS[dtype], fontsize=9,
        )  # fmt: skip
    for point in points:
        y = point.speed_R.max() / 1e9
        size = 130 if point.name == "training" else 45
        axes.scatter(
            point.work.intensity, y, s=size, marker=MARKERS[point.name], color=COLORS[point.dtype],
            edgecolors="white", linewidths=0.7, zorder=3,
        )  # fmt: skip
        if point.name == "linear" and point.rows in (1, 4, 16, 32):
            axes.annotate(
                f"B={point.rows}", (point.work.intensity, y), xytext=(0, -14), textcoords="offset points",
                ha="center", fontsize=9, color=COLORS[point.dtype],
            )  # fmt: skip
    handles: Any = [axes.scatter([], [], marker=MARKERS[n], color=NEUTRAL, label=label) for n, label in NAMES.items()]
    axes.legend(handles=handles, loc="lower right")
    axes.set(xscale="log", yscale="log", xlabel="intensity: operations per byte", ylabel="10⁹ operations per second")
    top = max(roof.peak for roof in roofs.values()) / 1e9
    axes.set_ylim(min(point.speed_R.max() for point in points) / 3e9, 2.2 * top)
    axes.set_title("Left of the bend memory is the limit, right of it arithmetic; a batch moves work to the right")


def draw_steps(axes: Axes, roofs: dict[str, Roof], points: list[Point]) -> None:
    """Draw the time of a step over the batch, as measured and as predicted from the roofs."""
    for dtype, roof in roofs.items():
        line = sorted((p for p in points if p.name == "linear" and p.dtype == dtype), key=lambda p: p.rows)
        rows = np.array([p.rows for p in line])
        measured = np.array([p.seconds_R.min() for p in line]) * 1e3
        x = np.geomspace(rows.min(), rows.max(), 100)
        low, high = line[0].work.bytes / roof.bandwidth, line[0].work.operations / roof.peak
        axes.plot(x, np.maximum(low, x * high) * 1e3, "--", color=COLORS[dtype], label=f"{dtype}, predicted")
        axes.plot(rows, measured, "o-", color=COLORS[dtype], ms=5, label=f"{dtype}, measured")
        for knee, symbol, y in ((roof.knee(dtype), "▽", 0), (float(np.median(knees_R(points, dtype))), "▼", 1)):
            axes.annotate(
                f"{symbol}{knee:.1f}", (min(max(knee, rows.min()), rows.max()), 0.02 + 0.09 * y),
                xycoords=("data", "axes fraction"), ha="center", color=COLORS[dtype], fontsize=9,
            )  # fmt: skip
    axes.legend(loc="upper left", ncols=2)
    axes.set(xscale="log", yscale="log", xlabel="B: texts generated together", ylabel="ms per step (linear maps)")
    ticks = sorted({p.rows for p in points if p.name == "linear"})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low / 2.2, high * 3)
    axes.set_title("More texts cost no more time up to the knee (▽ predicted from the roofs, ▼ measured)")
