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
from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
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


def counted_losses(tokens: np.ndarray, windows_NT) -> tuple[float, float]:
    """Return the loss of counting single tokens, and of counting pairs, with one added to every count."""
    ids, V = np.asarray(tokens, np.int64), int(max(tokens.max(), windows_NT.max())) + 1
    single_V = np.bincount(ids, minlength=V) + 1.0
    pairs_VV = np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V) + 1.0
    before, after = windows_NT[:, :-1].numpy(), windows_NT[:, 1:].numpy()
    single = -np.log(single_V / single_V.sum())[after].mean()
    pairs = -np.log(pairs_VV / pairs_VV.sum(1, keepdims=True))[before, after].mean()
    return float(single), float(pairs)


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
    """Return the picture: the loss of each rung, one point for each seed, and what each rung gains."""
    from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

    figures = result.figures
    names, loss = figures["rungs"], figures["loss"]
    rows = np.arange(len(names))
    with style():
        figure, axes = new_figure(height=4.6)
        for name, x in (("counting single tokens", "counting_single_tokens"), ("counting pairs", "counting_pairs")):
            axes.axvline(figures[x], color=NEUTRAL, linestyle=":", linewidth=1.2)
            axes.text(figures[x], -0.75, name, ha="center", va="bottom", color="#555555", fontsize=9)
        means = np.array([each.mean for each in loss])
        axes.plot(means, rows, color=NEUTRAL, linewidth=1, zorder=1)
        colors = {"supported": CATEGORIES[0], "not here": CATEGORIES[3], "unclear": CATEGORIES[1]}
        verdicts = ["supported", *figures["verdict"]]
        for r, (mean, verdict) in enumerate(zip(means, verdicts, strict=True)):
            color = NEUTRAL if r == 0 else colors[verdict]
            axes.plot(figures["loss_per_seed"][r], [r] * result.settings.seeds, "|", color=color, markersize=12)  # type: ignore[attr-defined]
            axes.plot(mean, r, "o", color=color, markersize=8)
            gain = f"{mean:.3f}"
            if r:
                each = figures["gain"][r - 1]
                gain += f"   gain {each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}] {verdict}"
            left = mean > (means.max() + means.min()) / 2
            axes.annotate(
                gain, (mean, r), (-12 if left else 12, 0), textcoords="offset points", va="center",
                ha="right" if left else "left", fontsize=9,
            )  # fmt: skip
        span = max(figures["counting_single_tokens"], means.max()) - means.min()
        axes.set_xlim(means.min() - 0.25 * span, means.min() + 1.1 * span)
        axes.set_yticks(
            rows, [f"{name}\n{count:,} weights" for name, count in zip(names, figures["parameters"], strict=True)]
        )
        axes.set_ylim(len(names) - 0.5, -0.9)
        axes.set_xlabel("validation loss in nats per token (lines: single seeds)")
        axes.set_title(f"Each part at the same number of steps. Claim: every part helps — {result.verdict}", pad=10)
    return figure


EXPERIMENT = Experiment(
    "ladder", CLAIM, run, LadderSettings(), LadderSettings(steps=200, n_embd=48, seeds=2, n_layer=3, windows=64)
)
