"""The picture of a film: losses, lens and roles over the steps, attention at some of them, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.lab.drawing.maps import show_map
from quill.lab.drawing.roles import CLASS_COLOUR, COLOURS
from quill.lab.drawing.style import CATEGORIES, MAGNITUDE, NEUTRAL, WIDTH, style, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP_TOKENS = 32
"""Tokens of the probe text whose attention is drawn, so that single cells can be seen."""
LABELLED_HEADS = 24


@dataclass(frozen=True)
class FilmPicture:
    """What the picture shows. Shapes: F frames, R readings, T queries, S keys."""

    title: str
    text: str
    steps: Sequence[int]
    probe_losses: Sequence[float]
    guess: float
    """loss if all tokens were equally likely"""
    evaluations: Sequence[tuple[int, float | None, float | None]]
    """step, training loss and validation loss of each evaluation"""
    readings: Sequence[str]
    agreement_RF: np.ndarray
    heads: Sequence[str]
    """the name of each head"""
    roles: Sequence[Sequence[str]]
    """for each head, its role at each frame"""
    labels: Sequence[str]
    shown: str
    """whose attention the maps show"""
    maps: Sequence[tuple[int, np.ndarray]]
    """step and map_TS"""
    samples: Sequence[tuple[int, str]]


def draw_film(picture: FilmPicture) -> Figure:
    """Return the picture."""
    from matplotlib.figure import Figure

    heights = [
        2.2,
        0.5 + 0.2 * len(picture.readings),
        0.5 + min(4.0, max(0.12 if len(picture.heads) > LABELLED_HEADS else 0.17, 0.1) * len(picture.heads)),
        1.9,
        0.45 + 0.24 * len(picture.samples),
    ]
    with style():
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
        start = visible(picture.text[:40]) + ("…" if len(picture.text) > 40 else "")
        figure.suptitle(f"{picture.title}, seen by the text “{start}”", fontsize=10.5, x=0.01, ha="left")
        parts: Any = figure.subfigures(3, 1, height_ratios=[sum(heights[:3]), heights[3], heights[4]])
        losses, lens, roles = parts[0].subplots(3, 1, sharex=True, height_ratios=heights[:3])
        draw_losses(losses, picture)
        draw_agreement(lens, picture)
        draw_roles_over_steps(parts[0], roles, picture)
        draw_maps(parts[1], picture)
        draw_samples(parts[2].subplots(), picture)
    return figure


def draw_losses(axes: Axes, picture: FilmPicture) -> None:
    """Draw the loss on the probe text, a dot for each frame, and the losses of the evaluations."""
    axes.plot(picture.steps, picture.probe_losses, color=CATEGORIES[0], marker="o", markersize=4, label="this text")
    for index, name, colour in ((1, "training", CATEGORIES[1]), (2, "validation", CATEGORIES[3])):
        points = [(each[0], each[index]) for each in picture.evaluations if each[index] is not None]
        if points:
            marker = "s" if index == 1 else "D"
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linestyle="--", label=name)
    axes.axhline(picture.guess, color=NEUTRAL, linewidth=1, linestyle=":", label="all tokens equally likely")
    axes.set_ylabel("loss, nats per token")
    axes.legend(loc="lower left")
    axes.set_title("Loss: a dot is a frame of the film")


def draw_agreement(axes: Axes, picture: FilmPicture) -> None:
    """Draw how often each layer already predicts what the model predicts at its end."""
    rows = range(len(picture.readings) + 1)
    image = axes.pcolormesh(edges(picture.steps), rows, picture.agreement_RF, cmap=MAGNITUDE, vmin=0, vmax=1)
    names = [*picture.readings]
    names[-1] += " (end)"
    axes.set_yticks([row + 0.5 for row in rows[:-1]], names)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Logit lens: where the layer already predicts what the model predicts at its end")
    axes.figure.colorbar(image, ax=axes, label="share", pad=0.01)


def draw_roles_over_steps(figure: Any, axes: Axes, picture: FilmPicture) -> None:
    """Draw the role of each head at each frame as a colour."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    kinds = [*COLOURS, "a class of characters"]
    colours = [*COLOURS.values(), CLASS_COLOUR]
    index = {role: number for number, role in enumerate(kinds)}
    cells = np.array([[index.get(role, len(kinds) - 1) for role in head] for head in picture.roles])
    count = len(picture.heads)
    axes.pcolormesh(
        edges(picture.steps), range(count + 1), cells, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(kinds) - 0.5,
        edgecolors="white", linewidth=0.4,
    )  # fmt: skip
    axes.invert_yaxis()
    layers = [head.split(".")[0] for head in picture.heads]
    if count <= LABELLED_HEADS:
        axes.set_yticks([row + 0.5 for row in range(count)], picture.heads, fontsize=8)
        axes.set_ylabel("layer.head")
    else:
        axes.set_yticks([row + 0.5 for row in range(count) if row == layers.index(layers[row])], sorted(set(layers)))
        axes.set_ylabel("layer; a row is a head")
    for row in range(1, count):
        if layers[row] != layers[row - 1]:
            axes.axhline(row, color="black", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    left, right = edges(picture.steps)[[0, -1]]
    axes.set_xlim(left, right)
    ticks = [0, *(m * 10**e for e in range(12) for m in (1, 3))]
    axes.set_xticks([tick for tick in ticks if left <= tick <= right], minor=False)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("finished steps (logarithmic)")
    axes.set_title("What each head looks at in this text; induction: in repeated random tokens")
    found = [kind for kind in kinds if (cells == index[kind]).any()]
    handles = [Patch(color=colours[index[kind]], label=kind) for kind in found]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)


def draw_maps(figure: Any, picture: FilmPicture) -> None:
    """Draw the attention to the first tokens of the text, one map for each chosen step."""
    line = np.atleast_1d(figure.subplots(1, len(picture.maps)))
    tokens = min(MAP_TOKENS, len(picture.labels))
    for axes, (step, map_TS) in zip(line, picture.maps, strict=True):
        show_map(axes, map_TS[:tokens, :tokens])
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"step {step:,}", fontsize=9, loc="center", pad=2)
    which = f"{picture.shown}, the first {tokens} tokens" if tokens < len(picture.labels) else picture.shown
    figure.suptitle(f"Attention of {which}: how much a row reads of a column", fontsize=10.5, x=0.01, ha="left")


def draw_samples(axes: Axes, picture: FilmPicture) -> None:
    """Write what the model generated at the chosen steps."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(picture.samples), 0))
    axes.set_title("What it writes after some steps, with the same random numbers each time")
    loss_of = dict(zip(picture.steps, picture.probe_losses, strict=True))
    for row, (step, sample) in enumerate(picture.samples):
        axes.text(0.085, row + 0.5, f"{step:,}", ha="right", va="center")
        axes.text(0.2, row + 0.5, f"loss {loss_of[step]:.2f}", ha="right", va="center", color="#555555")
        axes.text(0.23, row + 0.5, visible(sample), va="center", family="monospace", parse_math=False)


def edges(steps: Sequence[int]) -> np.ndarray:
    """Return the borders between frames, halfway between their steps on the logarithmic axis."""
    at = np.log1p(np.array(steps, float))
    middle = (at[1:] + at[:-1]) / 2
    first, last = (at[0] - (middle[0] - at[0]), at[-1] + (at[-1] - middle[-1])) if len(at) > 1 else (-0.3, at[0] + 0.3)
    return np.expm1(np.array([max(first, -0.5), *middle, last]))
