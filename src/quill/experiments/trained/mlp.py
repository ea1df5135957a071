"""Is the feed-forward network worth its parameters? A GPT against models of attention alone, and of MLPs alone.

Compared at equal depth, equal parameters and equal arithmetic; and how alike all positions become with depth when
attention is alone (Dong et al. 2021, "Attention is not all you need: pure attention loses rank doubly exponentially
with depth").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quill.experiments import edits
from quill.experiments.counting import counted_losses
from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
from quill.experiments.picture import draw_effects
from quill.experiments.trained.rank import rank_residuals
from quill.experiments.training import open_text, train_model, validation_windows
from quill.experiments.verdict import crossed_interval, effect
from quill.model.build import Model
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "The feed-forward network is worth its parameters: spent on more attention instead, they give a higher loss."
MARGIN = 0.005
"""Nats. Others measured 0.01 to 0.04 at this size."""


@dataclass(frozen=True)
class MLPSettings(Settings):
    """Sizes of the experiment."""

    n_embd: int = 64
    n_head: int = 4
    n_layer: int = 4
    block_size: int = 64
    batch_size: int = 16
    steps: int = 500
    learning_rate: float = 3e-3
    seeds: int = 3
    windows: int = 128
    rank_depth: int = 12
    """layers of the untrained models whose positions are compared"""


@dataclass(frozen=True)
class Variant:
    """A model of the comparison: its shape, what is silenced, and how many steps it trains."""

    name: str
    n_layer: int
    n_embd: int
    steps: int
    silence: Callable[[Model], None] | None = None


def variants_of(settings: MLPSettings) -> list[Variant]:
    """Return the variants; the first is the whole GPT.

    A block has 4 D² weights in attention and 8 D² in the feed-forward network. So three times the depth, or √3 times
    the width, gives attention alone as many as the whole; MLPs alone need 3/2 of the depth.
    """
    depth, width, steps = settings.n_layer, settings.n_embd, settings.steps
    attention, mlp = edits.without_feed_forward, edits.without_attention
    wider = max(1, round(3**0.5 * width / settings.n_head)) * settings.n_head
    mixing = 2 * settings.block_size * width  # scores and sums over the window, each for half of the pairs
    ratio = (12 * width**2 + mixing) / (4 * width**2 + mixing)
    return [
        Variant("whole GPT", depth, width, steps),
        Variant("attention alone", depth, width, steps, attention),
        Variant("attention, 3 × deeper", 3 * depth, width, steps, attention),
        Variant("attention, √3 × wider", depth, wider, steps, attention),
        Variant("attention, more steps", depth, width, round(steps * ratio), attention),
        Variant("MLPs alone", depth, width, steps, mlp),
        Variant("MLPs, 1.5 × deeper", max(1, round(1.5 * depth)), width, steps, mlp),
    ]


def run(settings: MLPSettings, on_progress: OnProgress) -> Result:
    """Train every variant with every seed, and compare the whole GPT with the others."""
    dataset = open_text(settings, settings.block_size, on_progress)
    windows_NT = validation_windows(dataset, settings.block_size, settings.windows)
    variants = variants_of(settings)
    cost = [v.n_layer * (12 if v.silence is None else 8) * v.n_embd for v in variants]
    progress = Progress(
        on_progress, settings.seeds * sum(v.steps * each for v, each in zip(variants, cost, strict=True))
    )
    losses_RSN = np.empty((len(variants), settings.seeds, len(windows_NT)))
    parameters, seconds = [0] * len(variants), np.zeros(len(variants))
    base = GPTConfig(
        dataset.tokenizer.vocab_size, settings.block_size, settings.n_layer, settings.n_head, settings.n_embd, 0.0
    )
    for s in range(settings.seeds):
        for r, variant in enumerate(variants):
            recipe = TrainConfig(
                batch_size=settings.batch_size, max_iters=variant.steps, learning_rate=settings.learning_rate,
                warmup_iters=settings.steps // 10, seed=settings.seed + s,
            )  # fmt: skip
            what = f"seed {s + 1} of {settings.seeds}, {variant.name}"
            trained = train_model(
                dataclasses.replace(base, n_layer=variant.n_layer, n_embd=variant.n_embd), recipe, dataset, windows_NT,
                edit=variant.silence, on_step=lambda steps, r=r, what=what: progress(what, steps * cost[r]),
            )  # fmt: skip
            losses_RSN[r, s] = trained.losses_N
            parameters[r] = sum(parameter.numel() for parameter in trained.model.blocks.parameters())
            seconds[r] += trained.seconds
    ranks = rank_residuals(
        dataclasses.replace(base, n_layer=settings.rank_depth), windows_NT[:8, :-1], seed=settings.seed
    )
    return result_of(
        settings, variants, losses_RSN, parameters, seconds, ranks, counted_losses(dataset.train, windows_NT)[1]
    )


def result_of(
    settings: MLPSettings,
    variants: list[Variant],
    losses_RSN: np.ndarray,
    parameters: list[int],
    seconds: np.ndarray,
    ranks: dict[str, np.ndarray],
    pairs: float,
) -> Result:
    """Return the result of the losses of R variants, S seeds and N windows."""
    names = [variant.name for variant in variants]
    gains = {name: effect(f"over {name}", losses_RSN[r] - losses_RSN[0], MARGIN) for r, name in enumerate(names)}
    deciding = names[2:5]
    intervals = [crossed_interval(losses_SN) for losses_SN in losses_RSN]
    return Result(
        name="mlp",
        title="The feed-forward network: is it worth its parameters?",
        claim=CLAIM,
        measure=(
            f"Loss on {losses_RSN.shape[2]} validation windows, {settings.seeds} seeds: what the whole GPT gains over "
            "attention alone with the same number of parameters (three times the depth, or √3 times the width), and "
            "with the same arithmetic (more steps), which is the same on every machine where seconds are not."
        ),
        control=(
            f"At the same depth attention alone ends at {intervals[1].mean:.3f} with a third of the weights; MLPs "
            f"alone see one token and end at {intervals[6].mean:.3f} (counted pairs: {pairs:.3f}). At the start, after "
            f"{settings.rank_depth} layers, attention alone without residual connections leaves "
            f"{ranks['attention'][-1]:.1e} of the differences between positions, and the whole GPT "
            f"{ranks['whole GPT'][-1]:.2f}."
        ),
        opposite=(
            f"Attention alone with as many parameters, or as much arithmetic, within {MARGIN:g} nats of the whole GPT "
            "or below it."
        ),
        effects=tuple(gains[name] for name in deciding),
        controls=tuple(gains[name] for name in (names[1], *names[5:])),
        figures={
            "variants": names,
            "parameters_of_blocks": parameters,
            "steps": [variant.steps for variant in variants],
            "loss": intervals,
            "loss_per_seed": losses_RSN.mean(2),
            "counting_pairs": pairs,
            "rank_residual_by_depth": ranks,
        },
        settings=settings,
        draw=draw,
        timings={"seconds_per_variant": seconds},
    )


def draw(result: Result) -> Figure:
    """Return the picture: losses, gains of the whole GPT, and how alike positions become with depth."""
    from matplotlib.ticker import MaxNLocator

    from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

    figures = result.figures
    names, means = figures["variants"], [each.mean for each in figures["loss"]]
    rows = list(range(len(names)))
    with style():
        figure, ((left, right), (below, empty)) = new_figure(2, 2, height=7.0, height_ratios=[1.25, 1])
        kinds = [CATEGORIES[0]] + [CATEGORIES[1]] * 4 + [CATEGORIES[2]] * 2
        for r, (mean, color) in enumerate(zip(means, kinds, strict=True)):
            left.plot(figures["loss_per_seed"][r], [r] * len(figures["loss_per_seed"][r]), "|", color=color, ms=12)
            left.plot(mean, r, "o", color=color, markersize=7)
            left.annotate(f"{mean:.3f}", (mean, r), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        left.axvline(figures["counting_pairs"], color=NEUTRAL, linestyle=":")
        left.text(figures["counting_pairs"], -0.62, "pairs counted", ha="center", va="bottom", fontsize=9)
        left.margins(x=0.15)
        left.set_yticks(
            rows,
            [
                f"{name}\n{count / 1000:.0f} k weights, {steps:,} steps"
                for name, count, steps in zip(names, figures["parameters_of_blocks"], figures["steps"], strict=True)
            ],
        )
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlabel("validation loss, nats per token")
        left.axhspan(1.5, 4.5, color="#f0f0f0", zorder=0)
        right.axhspan(1.5, 4.5, color="#f0f0f0", zorder=0)
        order = {each.name.removeprefix("over "): each for each in (*result.effects, *result.controls)}
        shown = [order[name] for name in names[1:]]
        draw_effects(right, shown, rows[1:])
        right.set_ylim(left.get_ylim())
        right.set_xlabel("gain of the whole GPT, nats, 95 % interval\n(dashed: margin named beforehand)")
        for (name, values), color in zip(figures["rank_residual_by_depth"].items(), CATEGORIES, strict=False):
            below.plot(range(len(values)), np.maximum(values, 1e-12), "o-", ms=3, color=color, label=name)
        below.set_yscale("log")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("layer, before training")
        below.set_ylabel("share of the residual stream\nthat differs between positions")
        empty.axis("off")
        empty.legend(*below.get_legend_handles_labels(), loc="upper left", title="what is left of a block")
        empty.text(
            0.02, 0.02, "Grey rows decide: attention alone with as many\nweights, or with as much arithmetic.\n\n"
            "Below: 0 means that all positions are the same.\nAttention averages over positions; residual\n"
            "connections keep them apart.", transform=empty.transAxes, va="bottom",
        )  # fmt: skip
        figure.suptitle(f"“The feed-forward network is worth its parameters”: {result.verdict}", fontsize=11)
    return figure


EXPERIMENT = Experiment(
    "mlp", CLAIM, run, MLPSettings(), MLPSettings(n_layer=2, n_embd=48, steps=220, seeds=2, windows=64, rank_depth=8)
)
