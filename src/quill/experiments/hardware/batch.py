"""What a batch buys: generation is faster without a change, training needs fewer steps but more tokens.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.3: the steps S and tokens E to a loss
obey S = S_min (1 + B_crit / B), E = S · B. Beyond B_crit a larger batch hardly saves steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.errors import ConfigError
from quill.experiments.experiment import Experiment, OnProgress, Result, Settings
from quill.experiments.hardware import batch_points as points
from quill.experiments.hardware.batch_points import Speeds, Writing
from quill.experiments.hardware.timed import TimedResult
from quill.experiments.training import open_text, train_model, validation_windows
from quill.experiments.verdict import effect
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Texts in a batch share the reading of the weights, so a batch generates more tokens a second and changes no text; "
    "in training a larger batch takes fewer steps to a loss, but more tokens."
)
OCTAVE = 1.0
"""A factor of 2, in logarithms to base 2."""


@dataclass(frozen=True)
class BatchSettings(Settings):
    """Sizes of the batch experiment."""

    writing_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    new_tokens: int = 64
    speed_batches: tuple[int, ...] = (1, 2, 4, 8)
    """windows in a training step whose time is measured"""
    rounds: int = 5
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    block_size: int = 256
    training_batches: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """windows in a step of the small models that are trained to one loss"""
    target_loss: float = 2.35
    """validation loss that they are trained to, nats per token"""
    fewest_steps: int = 330
    """training is given fewest_steps · (1 + 16 / B) steps"""
    small_width: int = 48
    small_block_size: int = 32
    learning_rate: float = 4e-3
    """of a batch of 16 windows; for B it is √(B / 16) times as high (Malladi et al. 2022)"""
    seeds: int = 3
    windows: int = 128


def run(settings: BatchSettings, on_progress: OnProgress) -> Result:
    """Measure writing, training steps, and training to one loss."""
    full = GPTConfig(
        vocab_size=65, block_size=settings.block_size, n_layer=settings.n_layer, n_head=settings.n_head,
        n_embd=settings.n_embd, dropout=0.0,
    )  # fmt: skip

    def progress(what: str, start: float, end: float):
        return lambda number, count: on_progress(what, start + (end - start) * number / (count + 1))

    steps_SB = steps_to_loss(settings, lambda what, share: on_progress(what, 0.6 * share))
    writing = points.measure_writing(
        full, settings.writing_batches, settings.new_tokens, settings.rounds, settings.seed,
        progress("generating texts together", 0.6, 0.8),
    )  # fmt: skip
    training = points.measure_training(
        full, settings.speed_batches, settings.rounds, settings.seed, progress("training steps", 0.8, 1.0)
    )
    return result_of(settings, writing, training, steps_SB)


def steps_to_loss(settings: BatchSettings, on_progress: OnProgress) -> np.ndarray:
    """Return steps_SB: the steps to the target loss for each seed and batch size."""
    dataset = open_text(settings, settings.small_block_size)
    windows_NT = validation_windows(dataset, settings.small_block_size, settings.windows)
    config = GPTConfig(
        vocab_size=dataset.tokenizer.vocab_size, block_size=settings.small_block_size, n_layer=2, n_head=2,
        n_embd=settings.small_width, dropout=0.0,
    )  # fmt: skip
    budgets = {B: round(settings.fewest_steps * (1 + 16 / B)) for B in settings.training_batches}
    total, done = settings.seeds * sum(B * steps + 8 * steps for B, steps in budgets.items()), 0.0
    steps_SB = np.zeros((settings.seeds, len(budgets)))
    for seed in range(settings.seeds):
        for column, (B, steps) in enumerate(budgets.items()):
            rate = settings.learning_rate * (B / 16) ** 0.5
            recipe = TrainConfig(
                batch_size=B, max_iters=steps, learning_rate=rate, min_lr=rate, warmup_iters=20, weight_decay=0.0,
                eval_interval=max(1, steps // 25), seed=settings.seed + seed,
            )  # fmt: skip

            def on_step(new: int, B: int = B) -> None:
                nonlocal done
                done += new * (B + 8)
                on_progress(f"training with {B} windows a step", done / total)

            trained = train_model(config, recipe, dataset, windows_NT, with_curve=True, on_step=on_step)
            losses = {step: float(losses_N.mean()) for step, losses_N in trained.curve.items()}
            steps_SB[seed, column] = crossing(losses, settings.target_loss)
            if not np.isfinite(steps_SB[seed, column]):
                raise ConfigError(
                    f"target_loss={settings.target_loss:g} was not reached in {steps} steps of {B} windows (loss "
                    f"{min(losses.values()):.3f}): choose a higher target_loss or more fewest_steps"
                )
    return steps_SB


def crossing(losses: dict[int, float], target: float) -> float:
    """Return the step at which the loss first falls to the target, interpolated; infinity if it never does."""
    before: tuple[int, float] | None = None
    for step, loss in sorted(losses.items()):
        if loss <= target:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = step, loss
    return float("inf")


def critical_batch(batches_B: np.ndarray, steps_B: np.ndarray) -> tuple[float, float]:
    """Return (S_min, B_crit) of S = S_min (1 + B_crit / B) with the least squared error of log S."""
    best = (np.inf, 0.0, 0.0)
    for critical in np.geomspace(batches_B.min() / 100, batches_B.max() * 100, 2000):
        shape_B = np.log1p(critical / batches_B)
        offset = (np.log(steps_B) - shape_B).mean()
        error = float(((np.log(steps_B) - shape_B - offset) ** 2).sum())
        best = min(best, (error, float(np.exp(offset)), float(critical)))
    return best[1], best[2]


def result_of(settings: BatchSettings, writing: Writing, training: Speeds, steps_SB: np.ndarray) -> Result:
    """Return the result of these measurements."""
    speed_BR = writing.speeds.throughput_BR
    batch = min(8, max(settings.writing_batches))
    eight = settings.writing_batches.index(batch)
    gain_R = np.log2(speed_BR[eight] / speed_BR[0])
    same_N = writing.same_BN[np.isfinite(writing.same_BN)]
    batches_B = np.array(settings.training_batches, float)
    tokens_SB = steps_SB * batches_B * settings.small_block_size
    fewest, critical = critical_batch(batches_B, np.exp(np.log(steps_SB).mean(0)))
    least, most = settings.training_batches[0], settings.training_batches[-1]
    steps_gain_S1 = np.log2(steps_SB[:, :1] / steps_SB[:, -1:])
    tokens_cost_S1 = np.log2(tokens_SB[:, -1:] / tokens_SB[:, :1])
    train_R = np.log2(training.throughput_BR[-1] / training.throughput_BR[0])
    return TimedResult(
        name="batch",
        title="What a batch buys in generation, and what it costs in training",
        claim=CLAIM,
        measure=(
            f"Texts of {settings.new_tokens} tokens are generated in batches with the engine for CPUs; models of one"
            f" size are trained to a validation loss of {settings.target_loss:g} with batches of {least} to {most}"
            " windows, the learning rate in proportion to the root of the batch size and not tuned for each."
        ),
        control=(
            f"Each of {writing.same_BN.shape[1]} texts was also generated alone, and {int(same_N.sum())} of"
            f" {len(same_N)} comparisons have the same tokens. A training step of {settings.speed_batches[-1]} windows"
            f" trains on {2 ** train_R.mean():.2f} times as many tokens a second as one of {settings.speed_batches[0]}:"
            " its windows share the weights already."
        ),
        opposite=(
            "A batch of texts would take as long as the texts one after the other, a text would change in company, or a"
            " large batch would reach the loss with as few tokens as a small one."
        ),
        effects=(
            effect(f"tokens/s with {batch} texts, against one", gain_R, OCTAVE, "octaves"),
            effect("texts that are the same in company", same_N - 1, 0.0, "share"),
            effect(f"fewer steps to the loss with {most} windows than with {least}", steps_gain_S1, OCTAVE, "octaves"),
            effect(f"more tokens to the loss with {most} windows than {least}", tokens_cost_S1, OCTAVE, "octaves"),
        ),
        controls=(effect("training: tokens/s with the largest batch, against one window", train_R, 0.0, "octaves"),),
        figures={
            "steps_SB": steps_SB,
            "tokens_SB": tokens_SB,
            "critical_batch": critical,
            "fewest_steps": fewest,
            "same_texts": int(same_N.sum()),
            "compared_texts": len(same_N),
        },
        settings=settings,
        draw=draw,
        timings={"writing": timings_of(writing.speeds), "training": timings_of(training)},
    )


def timings_of(speeds: Speeds) -> dict[str, Any]:
    """Return measured and predicted speeds."""
    return {
        "batches": speeds.batches,
        "seconds_BR": speeds.seconds_BR,
        "tokens_per_second_B": np.median(speeds.throughput_BR, axis=1),
        "seconds_predicted_B": speeds.predicted_B,
        "tokens": speeds.tokens,
    }


def draw(result: Result) -> Figure:
    """Return the picture of a result."""
    from quill.experiments.hardware.batch_figure import draw_batch

    return draw_batch(result)


EXPERIMENT = Experiment(
    "batch",
    CLAIM,
    run,
    BatchSettings(),
    BatchSettings(
        writing_batches=(1, 2, 4, 8, 16), new_tokens=32, speed_batches=(1, 2, 4), rounds=2, n_layer=4, n_head=4,
        n_embd=256, block_size=128, training_batches=(4, 16, 64), target_loss=2.6, fewest_steps=150, seeds=2,
    ),
)  # fmt: skip
