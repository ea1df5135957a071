"""The picture of the heads experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quill.experiments.experiment import Result
from quill.lab.drawing.roles import CLASS_COLOUR, COLOURS
from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST, LARGEST = 0.5, 0.94
"""Sides of a head's square, in cells."""


def draw_heads(result: Result) -> Figure:
    """Return the figure: the map of the heads beside that of the control, costs by method, and pruning curves."""
    from matplotlib.patches import Patch

    figures = result.figures
    with style():
        figure, axes = new_figure(2, 2, height=8.0)
        cost_LH = np.array(figures["cost_LH"], float)
        draw_map(axes[0, 0], figures["roles"], np.array(figures["strength_LH"]), cost_LH, figures["offset_LH"])
        axes[0, 0].set_title("Trained: role, and loss added without the head\n(size of the square)")
        control = np.array(figures["control_strength_LH"])
        draw_map(axes[0, 1], figures["control_roles"], control, None, None)
        axes[0, 1].set_title("Control: the same weights in random order\n(no costs)")
        found = [r for each in (figures["roles"], figures["control_roles"]) for row in each for r in row]
        colours = {
            COLOURS.get(role, CLASS_COLOUR): role if role in COLOURS else "a class of characters" for role in found
        }
        handles = [Patch(color=colour, label=label) for colour, label in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        draw_costs(axes[1, 0], result)
        draw_pruning(axes[1, 1], result)
    return figure


def draw_map(axes: Axes, roles: list[list[str]], strength_LH: np.ndarray, cost_LH, offset_LH) -> None:
    """Draw a square for each head: its colour is the role, its size the loss that the head is worth."""
    from matplotlib.patches import Rectangle

    L, H = strength_LH.shape
    for (layer, head), strength in np.ndenumerate(strength_LH):
        role, side = roles[layer][head], LARGEST
        if cost_LH is not None:
            share = max(0.0, float(cost_LH[layer, head])) / max(float(cost_LH.max()), 1e-9)
            side = SMALLEST + (LARGEST - SMALLEST) * share**0.5
        axes.add_patch(
            Rectangle((head - side / 2, layer - side / 2), side, side, color=COLOURS.get(role, CLASS_COLOUR), lw=0)
        )
        name = f"{offset_LH[layer][head]} back" if role == "fixed offset" and offset_LH is not None else role
        text = f"{name.replace(' ', chr(10), 1)}\n{strength:.2f}" if H <= 6 else f"{strength:.1f}"
        if cost_LH is not None and H <= 6:
            text += f"\n{cost_LH[layer, head]:+.3f}"
        ink = "white" if role in ("previous token", "induction", "fixed offset") else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=9, color=ink)
    axes.set(xlim=(-0.5, H - 0.5), ylim=(L - 0.5, -0.5), xticks=range(H), yticks=range(L))
    axes.set(xlabel="head", ylabel="layer")


def draw_costs(axes: Axes, result: Result) -> None:
    """Draw what each head is worth by each method of ablation, with intervals, the most valuable first."""
    costs = result.figures["costs"]
    order = np.argsort([-cost.mean for cost in costs["mean"]])
    shown = order[:8]
    H = np.array(result.figures["cost_LH"]).shape[1]
    for place, (method, each) in enumerate(costs.items()):
        means = np.array([each[index].mean for index in shown])
        low = means - [each[index].low for index in shown]
        high = [each[index].high for index in shown] - means
        axes.errorbar(
            np.arange(len(shown)) + 0.22 * (place - 1), means, yerr=[low, high], fmt="o", ms=4,
            color=CATEGORIES[place], label=method,
        )  # fmt: skip
    axes.axhline(0, color=NEUTRAL, lw=1)
    axes.set_xticks(range(len(shown)), [f"{index // H}.{index % H}" for index in shown])
    axes.set(xlabel="layer.head, the most valuable first", ylabel="loss added, nats per token")
    axes.set_title("One head ablated: by zero, its mean,\nor the value in another text")
    axes.legend(loc="upper right")


def draw_pruning(axes: Axes, result: Result) -> None:
    """Draw the loss over the number of removed heads."""
    figures = result.figures
    removed, by_chance_RK = figures["removed"], np.array(figures["loss_by_chance_RK"])
    axes.plot(removed, by_chance_RK.T, color=NEUTRAL, lw=0.8, alpha=0.7)
    axes.plot(removed, by_chance_RK.mean(0), "--", color="#444444", label="random order")
    axes.plot(removed, figures["loss_by_gradient_K"], "o-", color=CATEGORIES[0], ms=4, label="least |∂L/∂ξ| first")
    axes.set(
        xlabel="heads removed", ylabel="loss, nats per token", title="Heads removed one after the other\n(set to zero)"
    )
    axes.set_xticks(removed)
    axes.legend(loc="upper left")
