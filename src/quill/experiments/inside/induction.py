"""Copying from the context takes two layers of attention, or one and a table of pairs.

An induction head attends to the token after an earlier occurrence of the present one (Olsson et al. 2022, "In-context
Learning and Induction Heads"). Its keys must tell what came before each token. With two layers a previous-token head of
the first one writes that; the prediction tested here is that embeddings of pairs do it without that head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from quill.experiments.experiment import Experiment, OnProgress, Progress, Result, Settings
from quill.experiments.inside.induction_models import (
    Curve,
    Strings,
    configurations,
    repeated_strings,
    train_on_strings,
)
from quill.experiments.verdict import effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Two layers learn to copy a repeated string with an induction head, one layer does not; with embeddings of pairs "
    "one layer does."
)
MARGIN = 0.5
"""Nats, of the ln V that a guess costs."""
SCORE = 0.3
"""Mean attention that makes a head an induction head."""


@dataclass(frozen=True)
class InductionSettings(Settings):
    """Sizes of the induction experiment. It makes its strings itself and uses no text."""

    vocab_size: int = 16
    length: int = 32
    n_embd: int = 32
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 5e-3
    seeds: int = 3
    strings: int = 256
    """held-out strings that every model is measured on"""
    points: int = 21
    """steps at which loss and head scores are measured"""


def run(settings: InductionSettings, on_progress: OnProgress) -> Result:
    """Train each model with each seed on repeated random strings, and measure it on held-out ones."""
    shapes = configurations(settings.vocab_size, settings.length, settings.n_embd)
    held_out = repeated_strings(
        settings.vocab_size, settings.length, settings.strings, torch.Generator().manual_seed(settings.seed + 1_000_003)
    )
    progress = Progress(on_progress, len(shapes) * settings.seeds * settings.steps)
    curves: dict[str, list[Curve]] = {}
    for name, config in shapes.items():
        curves[name] = [
            train_on_strings(
                config, steps=settings.steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate,
                seed=settings.seed + seed, held_out=held_out, points=settings.points,
                on_step=lambda name=name, seed=seed: progress(f"{name}, seed {seed + 1} of {settings.seeds}"),
            )
            for seed in range(settings.seeds)
        ]  # fmt: skip
    return result_of(settings, curves, held_out)


def result_of(settings: InductionSettings, curves: dict[str, list[Curve]], held_out: Strings) -> Result:
    """Return the result of these curves."""
    guess = math.log(settings.vocab_size)
    final = {name: np.stack([curve.final_losses_N for curve in each]) for name, each in curves.items()}

    def heads_S1(name: str) -> np.ndarray:
        return np.array([[curve.induction_SLH[-1].max() - SCORE] for curve in curves[name]])

    means = {name: float(losses_SN.mean()) for name, losses_SN in final.items()}
    untrained = float(np.mean([curve.second_losses[0] for each in curves.values() for curve in each]))
    scores = [float(curve.induction_SLH[0].max()) for each in curves.values() for curve in each]
    one, two, pairs = curves
    return Result(
        name="induction",
        title="Copying from the context: one layer, two layers, and one with pairs",
        claim=CLAIM,
        measure=(
            f"Models of width {settings.n_embd} with two heads a layer are trained for {settings.steps} steps on random"
            f" strings that repeat, with {settings.seeds} seeds; the loss is that on {settings.strings} held-out"
            " strings from their repetition on. An induction head's score is its mean attention to the tokens after"
            " earlier occurrences of the present one."
        ),
        control=(
            f"Before training every model guesses: {untrained:.2f} nats, ln {settings.vocab_size} = {guess:.2f}, and"
            f" the highest head score is {max(scores):.2f}. Where a string has not repeated, no model can do better"
            f" than that. Final losses: {', '.join(f'{name} {loss:.2f}' for name, loss in means.items())}."
        ),
        opposite="One layer without pairs would copy as well as two, or one with pairs would not copy.",
        effects=(
            effect("one layer's loss above that of two", final[one] - final[two], MARGIN),
            effect("two layers: highest induction score above 0.3", heads_S1(two), 0.0, "attention"),
            effect("one layer: highest induction score below 0.3", -heads_S1(one), 0.0, "attention"),
            effect("one layer's loss above that of one with pairs", final[one] - final[pairs], MARGIN),
            effect("one layer with pairs: highest induction score above 0.3", heads_S1(pairs), 0.0, "attention"),
        ),
        controls=(effect("one layer's gain over guessing", guess - final[one], 0.0),),
        figures={
            "guess": guess,
            "final_losses": means,
            "curves": {
                name: [
                    {
                        "steps": curve.steps,
                        "first_losses": curve.first_losses,
                        "second_losses": curve.second_losses,
                        "induction_SLH": curve.induction_SLH,
                        "previous_SLH": curve.previous_SLH,
                    }
                    for curve in each
                ]
                for name, each in curves.items()
            },
        },
        settings=settings,
        draw=draw,
    )


def draw(result: Result) -> Figure:
    """Return the picture: the loss over the steps, and below it the score of the best head of each kind."""
    from quill.lab.drawing.style import CATEGORIES, NEUTRAL, new_figure, style

    curves, guess = result.figures["curves"], result.figures["guess"]
    with style():
        figure, axes = new_figure(2, 3, height=5.6, sharex=True, sharey="row")
        for column, (name, each) in enumerate(curves.items()):
            top, bottom = axes[0, column], axes[1, column]
            for curve in each:
                steps = curve["steps"]
                top.plot(steps, curve["second_losses"], color=CATEGORIES[0])
                top.plot(steps, curve["first_losses"], color=NEUTRAL, lw=1)
                induction, previous = np.array(curve["induction_SLH"]), np.array(curve["previous_SLH"])
                bottom.plot(steps, induction.max((1, 2)), color=CATEGORIES[3])
                bottom.plot(steps, previous.max((1, 2)), "--", color=CATEGORIES[2])
            top.axhline(guess, color=NEUTRAL, ls=":", lw=1)
            top.set_ylim(0, 1.75 * guess)
            bottom.set_ylim(0, 1.02)
            top.set_title(name[0].upper() + name[1:])
            bottom.set_xlabel("optimizer steps")
        axes[0, 0].set_ylabel("loss, nats per token")
        axes[1, 0].set_ylabel("attention of the best head")
        axes[0, 0].plot([], [], color=CATEGORIES[0], label="repeated part")
        axes[0, 0].plot([], [], color=NEUTRAL, lw=1, label="first time")
        axes[0, 0].plot([], [], ":", color=NEUTRAL, lw=1, label="a guess, ln V")
        axes[0, 0].legend(loc="lower left")
        axes[1, 0].plot([], [], color=CATEGORIES[3], label="induction: after the\nsame token before")
        axes[1, 0].plot([], [], "--", color=CATEGORIES[2], label="previous token")
        axes[1, 0].legend(loc="upper left")
        figure.suptitle(
            "Copying a repeated string needs two layers, or one that sees pairs"
            if result.verdict == "supported"
            else "Copying a repeated string: one layer, two, and one that sees pairs",
            fontsize=11,
            x=0.01,
            ha="left",
        )
    return figure


EXPERIMENT = Experiment("induction", CLAIM, run, InductionSettings(), InductionSettings(steps=300, seeds=2, points=11))
