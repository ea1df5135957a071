"""The ladder: from a table of pairs to a GPT, one part at a time, each with the same number of steps.

The order is that of "Let's build GPT" (Karpathy 2023). Every rung is the classic model with parts silenced from
outside, trained by the same recipe from weights drawn by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quill.experiments import edits
from quill.experiments.counting import counted_losses
from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
from quill.experiments.picture import draw_effects
from quill.experiments.training import open_text, train_model, validation_windows
from quill.experiments.verdict import crossed_interval, effect
from quill.model.build import Model
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Each part that is added, from one attention head to depth and dropout, lowers the validation loss."
MARGIN = 0.01
"""Nats: a smaller gain is not worth a part."""


@dataclass(frozen=True)
class LadderSettings(Settings):
    """Sizes of the ladder."""

    n_embd: int = 64
    n_head: int = 4
    n_layer: int = 4
    """depth of the last two rungs; the others have one block"""
    block_size: int = 64
    dropout: float = 0.1
    batch_size: int = 16
    steps: int = 800
    learning_rate: float = 3e-3
    seeds: int = 3
    windows: int = 128
    """validation windows that every rung is measured on"""


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it is called, its shape, and what is silenced."""

    name: str
    n_head: int
    n_layer: int = 1
    dropout: float = 0.0
    edits: tuple[Callable[[Model], None], ...] = ()


def rungs_of(settings: LadderSettings) -> list[Rung]:
    """Return the rungs from the bottom up. Each differs from the one below in one respect."""
    heads, depth = settings.n_head, settings.n_layer
    bare = (edits.without_feed_forward, edits.without_residuals, edits.without_norms)
    return [
        Rung("bigram", heads, edits=(edits.as_bigram,)),
        Rung("one head", 1, edits=bare),
        Rung(f"{heads} heads", heads, edits=bare),
        Rung("+ feed-forward", heads, edits=bare[1:]),
        Rung("+ residuals", heads, edits=bare[2:]),
        Rung("+ norm", heads),
        Rung(f"+ depth {depth}", heads, depth),
        Rung(f"+ dropout {settings.dropout:g}", heads, depth, settings.dropout),
    ]


def config_of(rung: Rung, settings: LadderSettings, vocab_size: int) -> GPTConfig:
    """Return the configuration of a rung. The head has weights of its own, so that a bigram model can be a table."""
    return GPTConfig(
        vocab_size, settings.block_size, rung.n_layer, rung.n_head, settings.n_embd, rung.dropout, tie_weights=False
    )


def edit_of(rung: Rung, seed: int) -> Callable[[Model], None]:
    """Return the function that makes a fresh classic model the model of a rung."""

    def edit(model: Model) -> None:
        for silence in rung.edits:
            silence(model)
        edits.with_unit_scale(model, seed)

    return edit


def run(settings: LadderSettings, on_progress: OnProgress) -> Result:
    """Train every rung with every seed, and compare each with the one below."""
    dataset = open_text(settings, settings.block_size, on_progress)
    windows_NT = validation_windows(dataset, settings.block_size, settings.windows)
    rungs = rungs_of(settings)
    cost = [rung.n_layer if rung.n_layer > 1 or rung.n_head == settings.n_head else 0.8 for rung in rungs]
    progress = Progress(on_progress, sum(cost) * settings.seeds * settings.steps)
    losses_RSN = np.empty((len(rungs), settings.seeds, len(windows_NT)))
    parameters, seconds = [0] * len(rungs), np.zeros(len(rungs))
    for s in range(settings.seeds):
        recipe = TrainConfig(
            batch_size=settings.batch_size, max_iters=settings.steps, learning_rate=settings.learning_rate,
            warmup_iters=settings.steps // 10, seed=settings.seed + s,
        )  # fmt: skip
        for r, rung in enumerate(rungs):
            trained = train_model(
                config_of(rung, settings, dataset.tokenizer.vocab_size), recipe, dataset, windows_NT,
                edit=edit_of(rung, recipe.seed),
                on_step=lambda steps, r=r, s=s: progress(
                    f"seed {s + 1} of {settings.seeds}, {rungs[r].name}", steps * cost[r]
                ),
            )  # fmt: skip
            losses_RSN[r, s] = trained.losses_N
            parameters[r] = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
            seconds[r] += trained.seconds
    return result_of(settings, rungs, losses_RSN, parameters, seconds, counted_losses(dataset.train, windows_NT))


def result_of(
    settings: LadderSettings,
    rungs: list[Rung],
    losses_RSN: np.ndarray,
    parameters: list[int],
    seconds: np.ndarray,
    counted: tuple[float, float],
) -> Result:
    """Return the result of the losses of R rungs, S seeds and N windows."""
    intervals = [crossed_interval(losses_SN) for losses_SN in losses_RSN]
    gains = [
        effect(
            rungs[r].name.removeprefix("+ ") + f" over {rungs[r - 1].name}", losses_RSN[r - 1] - losses_RSN[r], MARGIN
        )
        for r in range(1, len(rungs))
    ]
    single, pairs = counted
    return Result(
        name="ladder",
        title="The ladder: what each part of a GPT adds",
        claim=CLAIM,
        measure=(
            f"Loss on {losses_RSN.shape[2]} windows of the validation split in evaluation mode, each rung against the "
            f"one below, {settings.seeds} seeds, {settings.steps} steps of {settings.batch_size} × "
            f"{settings.block_size} tokens."
        ),
        control=(
            f"Counting single tokens gives {single:.3f} and counting pairs {pairs:.3f} nats; the trained bigram rung "
            f"sees the same and ends at {intervals[0].mean:.3f}."
        ),
        opposite=f"A rung whose loss is not at least {MARGIN:g} nats below that of the rung before.",
        effects=tuple(gains),
        figures={
            "rungs": [rung.name for rung in rungs],
            "parameters": parameters,
            "loss": intervals,
            "loss_per_seed": losses_RSN.mean(2),
            "gain": [each.interval for each in gains],
            "verdict": [each.verdict for each in gains],
            "counting_single_tokens": single,
            "counting_pairs": pairs,
        },
        settings=settings,
        draw=draw,
        timings={"seconds_per_rung": seconds},
    )


def draw(result: Result) -> Figure:
    """Return the picture: the loss of each rung with its single seeds, and what it gains over the rung above it."""
    from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

    figures = result.figures
    names, means = figures["rungs"], np.array([each.mean for each in figures["loss"]])
    rows = np.arange(len(names))
    with style():
        figure, (left, right) = new_figure(1, 2, height=4.6, width_ratios=[1.15, 1])
        for name, key in (("pairs counted", "counting_pairs"), ("single tokens\ncounted", "counting_single_tokens")):
            left.axvline(figures[key], color=NEUTRAL, linestyle=":", linewidth=1.2)
            left.text(figures[key], -0.6, name, ha="center", va="bottom", color="#555555", fontsize=9)
        left.plot(means, rows, "o-", color=CATEGORIES[0], markersize=7, linewidth=1)
        for r, mean in enumerate(means):
            seeds = figures["loss_per_seed"][r]
            left.plot(seeds, [r] * len(seeds), "|", color=CATEGORIES[0], markersize=12)
            left.annotate(
                f"{mean:.3f}", (max(mean, *seeds), r), (8, 0), textcoords="offset points", va="center", fontsize=9
            )
        ends = [*means, figures["counting_pairs"], figures["counting_single_tokens"]]
        span = max(ends) - min(ends)
        left.set_xlim(min(ends) - 0.1 * span, max(ends) + 0.12 * span)
        labels = [f"{name}\n{count:,} weights" for name, count in zip(names, figures["parameters"], strict=True)]
        left.set_yticks(rows, labels)
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlabel("validation loss, nats per token\n(upright lines: single seeds)")
        draw_effects(right, result.effects, list(rows[1:]))
        right.set_ylim(left.get_ylim())
        right.set_xlabel("gain over the rung above, nats, 95 % interval\n(dashed: margin named beforehand)")
        figure.suptitle(
            f"One part more at a time, {result.settings.steps:,} steps each. "  # type: ignore[attr-defined]
            f"“Every part lowers the loss”: {result.verdict}",
            fontsize=11,
        )
    return figure


EXPERIMENT = Experiment(
    "ladder", CLAIM, run, LadderSettings(), LadderSettings(steps=200, n_embd=48, seeds=2, n_layer=3, windows=64)
)
