"""The picture of the batch experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.experiments.experiment import Result
from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_batch(result: Result) -> Figure:
    """Return the figure: speed and latency of generation, speed of training, steps and tokens to a loss."""
    settings: Any = result.settings
    with style():
        figure, axes = new_figure(2, 2, height=7.0)
        writing, training = result.timings["writing"], result.timings["training"]
        draw_speed(axes[0, 0], writing, "Generation: tokens a second", "B: texts generated together", CATEGORIES[0])
        draw_latency(axes[0, 1], writing)
        draw_speed(axes[1, 0], training, "Training: tokens a second", "B: windows in a step", CATEGORIES[2])
        draw_tradeoff(axes[1, 1], result.figures, np.array(settings.training_batches), settings.target_loss)
    return figure


def ticks(axes: Axes, batches: Any) -> None:
    """Label the batch sizes of a logarithmic axis."""
    axes.set_xscale("log")
    axes.set_xticks(list(batches), [str(batch) for batch in batches])
    axes.minorticks_off()


def draw_speed(axes: Axes, timings: Mapping[str, Any], title: str, label: str, color: str) -> None:
    """Draw measured and predicted tokens a second over the batch."""
    batches, seconds_BR = np.array(timings["batches"]), np.array(timings["seconds_BR"])
    tokens = timings["tokens"] * batches
    predicted = tokens / np.array(timings["seconds_predicted_B"])
    speed_BR = tokens[:, None] / seconds_BR
    axes.plot(batches, predicted, "--", color=NEUTRAL, label="predicted from the roofs")
    axes.plot(batches, np.median(speed_BR, 1), "o-", color=color, label="measured")
    axes.fill_between(batches, speed_BR.min(1), speed_BR.max(1), color=color, alpha=0.2, linewidth=0)
    ticks(axes, batches)
    axes.set(xlabel=label, ylabel="tokens per second", title=title)
    axes.set_ylim(0, 1.25 * max(predicted.max(), speed_BR.max()))
    axes.legend(loc="upper left")


def draw_latency(axes: Axes, timings: Mapping[str, Any]) -> None:
    """Draw the milliseconds that each text waits for a token."""
    batches, seconds_BR = np.array(timings["batches"]), np.array(timings["seconds_BR"])
    axes.plot(batches, 1e3 * np.array(timings["seconds_predicted_B"]), "--", color=NEUTRAL, label="predicted")
    axes.plot(batches, 1e3 * np.median(seconds_BR, 1), "o-", color=CATEGORIES[0], label="measured")
    first = 1e3 * float(np.median(seconds_BR[0]))
    axes.plot(batches, first * batches, ":", color=CATEGORIES[3], label="one text after the other")
    ticks(axes, batches)
    axes.set(yscale="log", xlabel="B: texts generated together", ylabel="ms per token of each text")
    axes.set_title("Generation: each text waits a little longer")
    axes.legend(loc="upper left")


def draw_tradeoff(axes: Axes, figures: Mapping[str, Any], batches: np.ndarray, target: float) -> None:
    """Draw the steps and the tokens to one loss, relative to their least, with the fitted law."""
    steps_SB = np.array(figures["steps_SB"], float)
    fewest, critical = figures["fewest_steps"], figures["critical_batch"]
    x = np.geomspace(batches.min(), batches.max(), 100)
    axes.plot(x, 1 + critical / x, "-", color=CATEGORIES[1], lw=1)
    axes.plot(x, 1 + x / critical, "-", color=CATEGORIES[4], lw=1)
    for steps_B in steps_SB:
        axes.plot(batches, steps_B / fewest, "o", color=CATEGORIES[1], ms=4)
        axes.plot(batches, steps_B * batches / (fewest * critical), "s", color=CATEGORIES[4], ms=4)
    axes.plot([], [], "o-", color=CATEGORIES[1], label="steps / fewest steps")
    axes.plot([], [], "s-", color=CATEGORIES[4], label="tokens / fewest tokens")
    axes.axvline(critical, color=NEUTRAL, ls=":")
    axes.annotate(
        f"critical batch {critical:.0f}", (critical, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", fontsize=9, color="#555555",
    )  # fmt: skip
    ticks(axes, batches)
    axes.set(yscale="log", xlabel="B: windows in a step", ylabel="multiple of the least possible")
    most = max(1 + critical / batches.min(), 1 + batches.max() / critical)
    marks = [mark for mark in (1, 2, 4, 8, 16, 32, 64) if mark <= 2 * most]
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_title(f"Training to loss {target:g}: steps or tokens")
    axes.legend(loc="upper center")
