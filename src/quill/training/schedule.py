"""Learning-rate schedules: pure functions of the step, without state and without PyTorch."""

from __future__ import annotations

import math

from quill.training.config import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate that this recipe uses at this step (counted from 0)."""
    return cosine_decay(
        step,
        learning_rate=config.learning_rate,
        min_lr=config.learning_rate / 10 if config.min_lr is None else config.min_lr,
        warmup_iters=config.warmup_iters,
        decay_iters=config.max_iters if config.lr_decay_iters is None else config.lr_decay_iters,
    )


def cosine_decay(step: int, *, learning_rate: float, min_lr: float, warmup_iters: int, decay_iters: int) -> float:
    """Return the learning rate of this step (counted from 0): up in a line, then down half a cosine, then level.

        warm-up:  lr(s) = learning_rate · (s + 1) / (warmup + 1)
        decay:    lr(s) = min_lr + ½ (learning_rate - min_lr) (1 + cos(π (s - warmup) / (decay_iters - warmup)))

    Loshchilov & Hutter 2017 (SGDR), equation 5, one period; the warm-up is that of Goyal et al. 2017, section 2.2.
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if step >= decay_iters:
        return min_lr
    progress = (step - warmup_iters) / (decay_iters - warmup_iters)
    return min_lr + 0.5 * (learning_rate - min_lr) * (1 + math.cos(math.pi * progress))
