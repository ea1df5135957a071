"""When does dropout help? The same number of tokens from ever less text, so that it is read ever more often.

Srivastava et al. 2014, "Dropout". With less than one reading it is expected to hurt (arXiv 2505.24788).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
from quill.experiments.training import (
    open_text,
    require_training_windows,
    shortened,
    train_model,
    validation_windows,
)
from quill.experiments.verdict import crossed_interval, effect
from quill.lab.statistics import Interval
from quill.lab.windows import losses_per_window, windows_of
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Dropout generalises: where a text is read many times, it lowers the validation loss."
MARGIN = 0.01
"""Nats."""


@dataclass(frozen=True)
class DropoutSettings(Settings):
    """Sizes of the experiment."""

    shares: tuple[float, ...] = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
    """shares of the training text, each trained on for the same number of steps"""
    dropout: float = 0.2
    weight_decay: float = 0.1
    strong_weight_decay: float = 1.0
    """the rival: no dropout, and this much weight decay"""
    n_embd: int = 64
    n_head: int = 4
    n_layer: int = 2
    block_size: int = 64
    batch_size: int = 16
    steps: int = 500
    learning_rate: float = 3e-3
    seeds: int = 3
    windows: int = 128


def run(settings: DropoutSettings, on_progress: OnProgress) -> Result:
    """Train on each share of the text with and without dropout, and with strong weight decay instead."""
    dataset = open_text(settings, settings.block_size, on_progress)
    windows_NT = validation_windows(dataset, settings.block_size, settings.windows)
    counts = [round(len(dataset.train) * share) for share in settings.shares]
    require_training_windows(dataset, min(counts), settings.block_size, min(settings.shares))
    kinds = {
        "none": (0.0, settings.weight_decay),
        f"dropout {settings.dropout:g}": (settings.dropout, settings.weight_decay),
        f"weight decay {settings.strong_weight_decay:g}": (0.0, settings.strong_weight_decay),
    }
    runs = len(counts) * len(kinds) * settings.seeds
    progress = Progress(on_progress, runs * settings.steps)
    shape = (len(kinds), len(counts), settings.seeds)
    val_KCSN, train_KCS = np.empty((*shape, len(windows_NT))), np.empty(shape)
    for s in range(settings.seeds):
        for c, count in enumerate(counts):
            part = shortened(dataset, count)
            read_NT = windows_of(np.asarray(part.train), settings.block_size + 1, settings.windows)
            for k, (name, (dropout, decay)) in enumerate(kinds.items()):
                config = GPTConfig(
                    dataset.tokenizer.vocab_size, settings.block_size, settings.n_layer, settings.n_head,
                    settings.n_embd, dropout,
                )  # fmt: skip
                recipe = TrainConfig(
                    batch_size=settings.batch_size, max_iters=settings.steps, learning_rate=settings.learning_rate,
                    warmup_iters=settings.steps // 10, weight_decay=decay, data_order="shuffled",
                    seed=settings.seed + s,
                )  # fmt: skip
                what = f"seed {s + 1} of {settings.seeds}, {100 * settings.shares[c]:.3g} % of the text, {name}"
                trained = train_model(
                    config, recipe, part, windows_NT, on_step=lambda steps, what=what: progress(what, steps)
                )
                val_KCSN[k, c, s] = trained.losses_N
                train_KCS[k, c, s] = losses_per_window(trained.model, read_NT).mean()
    tokens = settings.steps * settings.batch_size * settings.block_size
    return result_of(settings, list(kinds), np.array([tokens / count for count in counts]), val_KCSN, train_KCS)


def zero_crossing(epochs_C: np.ndarray, gains_C: np.ndarray) -> float | None:
    """Return at how many epochs the gain first becomes positive, by interpolation over log epochs; None if it never
    does, or is positive from the first."""
    order = np.argsort(epochs_C)
    epochs_C, gains_C = epochs_C[order], gains_C[order]
    for i in range(len(gains_C) - 1):
        if gains_C[i] <= 0 < gains_C[i + 1]:
            share = -gains_C[i] / (gains_C[i + 1] - gains_C[i])
            return float(math.exp((1 - share) * math.log(epochs_C[i]) + share * math.log(epochs_C[i + 1])))
    return None


def result_of(
    settings: DropoutSettings, kinds: list[str], epochs_C: np.ndarray, val_KCSN: np.ndarray, train_KCS: np.ndarray
) -> Result:
    """Return the result of the losses of K kinds (none, dropout, weight decay), C shares, S seeds and N windows."""
    most, least = int(epochs_C.argmax()), int(epochs_C.argmin())
    gains: list[list[Interval]] = [
        [crossed_interval(val_KCSN[0, c] - val_KCSN[k, c]) for c in range(len(epochs_C))] for k in (1, 2)
    ]
    crossing = zero_crossing(epochs_C, np.array([each.mean for each in gains[0]]))
    few, many = in_digits(epochs_C[least]), in_digits(epochs_C[most])
    losses = val_KCSN.mean((2, 3))
    gap = losses[0, most] - train_KCS[0, most].mean()
    where = f"The gain changes its sign at about {crossing:.1f} epochs." if crossing else "The gain keeps its sign."
    return Result(
        name="dropout",
        title="Dropout: when does it help?",
        claim=CLAIM,
        measure=(
            f"Validation loss in evaluation mode after the same {settings.steps} steps on ever less of the text, "
            f"{settings.seeds} seeds: without dropout minus with {settings.dropout:g}, where the text is read {many} "
            f"times. {where}"
        ),
        control=(
            f"Read {few} times, where there is nothing to overfit to; and weight decay "
            f"{settings.strong_weight_decay:g} instead of dropout. Read {many} times, the model without dropout has a "
            f"validation loss {gap:+.3f} nats from its training loss."
        ),
        opposite=(
            f"With {many} readings, a validation loss with dropout that is not at least {MARGIN:g} nats below the one "
            "without."
        ),
        effects=(effect(f"dropout, {many} epochs", val_KCSN[0, most] - val_KCSN[1, most], MARGIN),),
        controls=(
            effect(f"dropout, {few} epochs", val_KCSN[0, least] - val_KCSN[1, least], MARGIN),
            effect(f"weight decay, {many} epochs", val_KCSN[0, most] - val_KCSN[2, most], MARGIN),
            effect(f"dropout over weight decay, {many} epochs", val_KCSN[2, most] - val_KCSN[1, most], MARGIN),
        ),
        figures={
            "kinds": kinds,
            "shares": settings.shares,
            "epochs": epochs_C,
            "validation_loss": losses,
            "training_loss": train_KCS.mean(2),
            "validation_loss_per_seed": val_KCSN.mean(3),
            "gain_of_dropout": gains[0],
            "gain_of_weight_decay": gains[1],
            "zero_crossing_epochs": crossing,
        },
        settings=settings,
        draw=draw,
    )


def in_digits(epochs: float) -> str:
    """Return a number of epochs with two digits, or as a whole number: 0.51, 8.2, 131."""
    return f"{epochs:.2g}" if epochs < 99.5 else f"{epochs:.0f}"


def draw(result: Result) -> Figure:
    """Return the picture: both losses over the number of epochs, and the gain of dropout and of weight decay."""
    from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

    figures = result.figures
    epochs, kinds = np.asarray(figures["epochs"]), figures["kinds"]
    order = np.argsort(epochs)
    marks = ("o", "s", "^")
    ticks = [f"{in_digits(float(epochs[c]))}\n({figures['shares'][c] * 100:.3g} %)" for c in order]
    with style():
        figure, (left, right) = new_figure(1, 2, height=4.4)
        for k, name in enumerate(kinds):
            color = CATEGORIES[k]
            for key, line, label in (("validation_loss", "-", name), ("training_loss", ":", None)):
                losses = np.asarray(figures[key])[k][order]
                left.plot(epochs[order], losses, line, marker=marks[k], color=color, label=label)
        left.plot([], [], "-", color=NEUTRAL, label="validation")
        left.plot([], [], ":", color=NEUTRAL, label="training")
        left.set_ylabel("loss in evaluation mode, nats per token")
        left.set_title("Both losses, the same number of tokens")
        right.axhline(0, color=NEUTRAL, linewidth=1)
        right.axhline(MARGIN, color="black", linewidth=1, linestyle=(0, (2, 1)))
        for k, key in ((1, "gain_of_dropout"), (2, "gain_of_weight_decay")):
            gains = figures[key]
            means = np.array([each.mean for each in gains])
            spread = np.array([[each.mean - each.low for each in gains], [each.high - each.mean for each in gains]])
            right.errorbar(epochs[order], means[order], spread[:, order], marker=marks[k], color=CATEGORIES[k],
                           capsize=3, label=kinds[k])  # fmt: skip
        if figures["zero_crossing_epochs"]:
            right.axvline(figures["zero_crossing_epochs"], color=CATEGORIES[1], linestyle=":")
            right.annotate(
                f"{figures['zero_crossing_epochs']:.1f} epochs", (figures["zero_crossing_epochs"], 0.04),
                xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", color=CATEGORIES[1],
            )  # fmt: skip
        right.set_ylabel("gain over none, nats, 95 % interval")
        right.set_title("Above 0: it helps (dashed: margin)")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(epochs[order], ticks)
            axes.minorticks_off()
            axes.set_xlabel("times the text is read (share of the text)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle(f"“Where a text is read many times, dropout helps”: {result.verdict}", fontsize=11)
    return figure


EXPERIMENT = Experiment(
    "dropout",
    CLAIM,
    run,
    DropoutSettings(),
    DropoutSettings(shares=(1.0, 1 / 16, 1 / 256), steps=200, seeds=2, windows=64, n_embd=48),
)
