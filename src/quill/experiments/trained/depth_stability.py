"""LayerNorm and depth: which learning rates train a deep model with pre-norm, with post-norm, and without a norm.

Pre- and post-norm: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from quill.experiments import edits
from quill.experiments.counting import counted_losses
from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
from quill.experiments.trained.depth_picture import draw
from quill.experiments.trained.depth_start import Start, edit_start, measure_start
from quill.experiments.training import open_text, train_model, validation_windows
from quill.experiments.verdict import Effect, effect
from quill.model.build import Model
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

CLAIM = (
    "LayerNorm stabilises depth: with a norm before each part, a deep model trains at learning rates where it does not "
    "with norms after each addition, or without."
)
MARGIN, WIDTH_MARGIN = 0.05, 0.25
"""Nats, averaged over learning rates; and decades of the learning rate."""
LEARNT = 0.1
"""A cell is stable if its loss is this many nats below that of counting single tokens."""
NORMS: tuple[edits.Norm, ...] = get_args(edits.Norm)


@dataclass(frozen=True)
class DepthSettings(Settings):
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (2, 8, 24)
    start_depths: tuple[int, ...] = (2, 4, 8, 16, 32, 48)
    learning_rates: tuple[float, ...] = (1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1)
    n_embd: int = 32
    n_head: int = 2
    block_size: int = 32
    batch_size: int = 8
    steps: int = 100
    seeds: int = 3
    windows: int = 128


def run(settings: DepthSettings, on_progress: OnProgress) -> Result:
    """Measure models of every depth before training, and train the grid of norm, depth, learning rate and seed."""
    dataset = open_text(settings, settings.block_size, on_progress)
    windows_NT = validation_windows(dataset, settings.block_size, settings.windows)
    vocab_size, deepest = dataset.tokenizer.vocab_size, max(settings.depths)
    grids = [(True, settings.depths), (False, (deepest,))]
    layers = sum(depth + 1 for _, depths in grids for depth in depths)
    runs = settings.seeds * len(settings.learning_rates) * len(NORMS)
    progress = Progress(on_progress, layers * runs * settings.steps)

    def config(depth: int) -> GPTConfig:
        return GPTConfig(
            vocab_size, settings.block_size, depth, settings.n_head, settings.n_embd, 0.0, tie_weights=False
        )

    starts = [
        measure_start(config(depth), windows_NT[:16], norm, scaled, settings.seed)
        for scaled in (True, False)
        for norm in NORMS
        for depth in settings.start_depths
    ]
    cells: dict[tuple[bool, str, int], np.ndarray] = {}  # losses_RSN, of R learning rates
    for careful, depths in grids:
        for norm in NORMS:
            for depth in depths:
                what = f"{norm}-norm, {depth} layers" if norm != "none" else f"no norm, {depth} layers"
                losses_RSN = np.empty((len(settings.learning_rates), settings.seeds, len(windows_NT)))
                for r, rate in enumerate(settings.learning_rates):
                    for s in range(settings.seeds):
                        recipe = TrainConfig(
                            batch_size=settings.batch_size, max_iters=settings.steps, learning_rate=rate,
                            warmup_iters=settings.steps // 5 if careful else 0, grad_clip=0.0, seed=settings.seed + s,
                        )  # fmt: skip
                        losses_RSN[r, s] = train_model(
                            config(depth), recipe, dataset, windows_NT, edit=edit_of(norm, careful, recipe.seed),
                            on_step=lambda steps, w=what, d=depth: progress(w, steps * (d + 1)),
                        ).losses_N  # fmt: skip
                cells[careful, norm, depth] = losses_RSN
    single = counted_losses(dataset.train, windows_NT)[0]
    return result_of(settings, starts, cells, single, math.log(vocab_size))


def edit_of(norm: edits.Norm, scaled: bool, seed: int) -> Callable[[Model], None]:
    """Return the function that gives a fresh classic model its norm and its first weights."""
    return lambda model: edit_start(model, norm, scaled, seed)  # type: ignore[arg-type]


def stable_width(losses_RS: np.ndarray, rates_R: np.ndarray, limit: float) -> np.ndarray:
    """Return width_S: how many decades of the learning rate are stable. One stable rate counts as one step."""
    step = np.log10(rates_R[-1] / rates_R[0]) / max(1, len(rates_R) - 1)
    return (losses_RS < limit).sum(0) * step


def show_ratio(ratio: float) -> str:
    """Return a ratio of gradients as text."""
    return f"{ratio:.3g}" if math.isfinite(ratio) else "beyond the numbers of float32"


def result_of(
    settings: DepthSettings,
    starts: list[Start],
    cells: dict[tuple[bool, str, int], np.ndarray],
    single: float,
    guess: float,
) -> Result:
    """Return the result of the losses of all cells. `single` is the loss of counting tokens, `guess` that of none."""
    deepest, rates_R = max(settings.depths), np.array(settings.learning_rates)
    # A loss above that of a guess is a guess: else one diverged run would decide a mean.
    capped = {key: np.minimum(losses, guess).mean(0) for key, losses in cells.items()}  # SN, mean over rates
    width = {key: stable_width(losses.mean(2), rates_R, single - LEARNT) for key, losses in cells.items()}
    words = {"pre": "pre-norm", "post": "post-norm", "none": "no norm"}

    def gains(careful: bool, note: str) -> list[Effect]:
        made = []
        for other in ("post", "none"):
            better = capped[careful, other, deepest] - capped[careful, "pre", deepest]
            made.append(effect(f"pre-norm over {words[other]}{note}", better, MARGIN))
        return made

    def wider(careful: bool, note: str) -> list[Effect]:
        return [
            effect(
                f"width over {words[other]}{note}",
                (width[careful, "pre", deepest] - width[careful, other, deepest])[:, None],
                WIDTH_MARGIN,
                "decades",
            )
            for other in ("post", "none")
            if settings.seeds > 1
        ]

    last = {(start.norm, start.scaled): start for start in starts if start.depth == max(settings.start_depths)}
    ratios, plain_ratios = (
        ", ".join(f"{words[norm]} {show_ratio(last[norm, scaled].gradient_ratio)}" for norm in NORMS)
        for scaled in (True, False)
    )
    return Result(
        name="depth-stability",
        title="LayerNorm and depth: which learning rates train a deep model",
        claim=CLAIM,
        measure=(
            f"Validation loss after {settings.steps} steps at {deepest} layers, averaged over {len(rates_R)} learning "
            f"rates from {rates_R[0]:.0e} to {rates_R[-1]:.0e}, {settings.seeds} seeds, without gradient clipping; a "
            f"loss above ln V counts as ln V. A cell is stable if it is {LEARNT:g} below counting single tokens."
        ),
        control=(
            "The same without warm-up and without the factor 1/√(2L) of the first weights. Before training, at "
            f"{max(settings.start_depths)} layers, the largest gradient of a block over the smallest: {ratios}; "
            f"without the factor: {plain_ratios}."
        ),
        opposite=(
            f"A model with its norms after each addition, or without norms, within {MARGIN:g} nats of pre-norm on "
            "average over the same learning rates."
        ),
        effects=tuple(gains(True, "")),
        controls=(*wider(True, ""), *gains(False, ", bare"), *wider(False, ", bare")),
        figures={
            "learning_rates": rates_R,
            "counting_single_tokens": single,
            "ln_V": guess,
            "cells": [
                {
                    "warm_up_and_scaling": careful,
                    "norm": norm,
                    "depth": depth,
                    "loss": losses.mean(2).mean(1),
                    "loss_per_seed": losses.mean(2),
                    "diverged": (~np.isfinite(losses.mean(2)) | (losses.mean(2) > guess)).any(1),
                    "stable_decades": width[careful, norm, depth],
                }
                for (careful, norm, depth), losses in cells.items()
            ],
            "start": [
                {
                    "norm": start.norm,
                    "scaling": start.scaled,
                    "depth": start.depth,
                    "gradient_norm": start.gradient_norm_L,
                    "rms": start.rms_L,
                }
                for start in starts
            ],
        },
        settings=settings,
        draw=draw,
    )


EXPERIMENT = Experiment(
    "depth-stability",
    CLAIM,
    run,
    DepthSettings(),
    DepthSettings(
        depths=(2, 12), start_depths=(2, 8, 24, 48), learning_rates=(1e-3, 1e-2, 1e-1), steps=40, seeds=2, windows=64
    ),
)
